#!/usr/bin/env bash
# Measures a figure that was promised, on a fresh cluster of this machine, prints the numbers, and fails if it is missed.
#
#   scripts/figures.sh kill-stall        fio while a secondary, then the primary, is killed and stays dead: 4 s, 8 s
#   scripts/figures.sh rebuild           1 GiB of lost replicas: starts in 15 s, done in 60 s, half of the rate is left
#   scripts/figures.sh delta [--full]    a server that missed 100 MiB of 1 GiB (--full: 10 GiB) copies at most 150 MiB
#   scripts/figures.sh flips             1,200 flipped bits: all found, none returned, all mended
#   scripts/figures.sh all               all of them, with the smaller sizes
#
# DFS_BIN is the program to test; without it, target/release/dfs is built. TMPDIR must be on a real disk. As root.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  kill-stall | rebuild | delta | flips | all) ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
if [ -z "${DFS_BIN:-}" ]; then
  cargo build --release --locked --quiet -p dfs
  export DFS_BIN=$PWD/target/release/dfs
fi
if [ -z "${FIGURES_BIN:-}" ]; then
  cargo build --release --locked --quiet -p dfs-tests --bin figures
  FIGURES_BIN=$PWD/target/release/figures
fi
[ "$1" = all ] || exec "$FIGURES_BIN" "$@"
status=0
for name in kill-stall rebuild delta flips; do
  printf '\n== %s\n' "$name"
  "$FIGURES_BIN" "$name" || status=1
done
exit $status
