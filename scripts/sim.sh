#!/usr/bin/env bash
# Runs the simulator: a whole cluster in one thread, from one seed, with faults.
#
#   scripts/sim.sh --seed N [--bug NAME]                     one seed, with its whole story
#   scripts/sim.sh --seeds N [--from M] [--minutes M] [--threads T] [--keep-going]
#                                                            the kept seeds (tests/sim-seeds) and N more
#   scripts/sim.sh --catalogue [--bug NAME]                  each bug on purpose is to be found within 200 seeds
#
# Exit 0: nothing was violated (and no bug missed).
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo run --quiet -p dfs-tests --bin sim -- "$@"
