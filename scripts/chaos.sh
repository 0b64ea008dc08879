#!/usr/bin/env bash
# Chaos: a cluster of real processes, each in a network namespace of its own, on disks that fail, under a load whose
# every block is known, while everything fails in turn. At the end every byte and name is compared.
#
#   scripts/chaos.sh --seed N --minutes M [--only KIND,...] [--keep]    faults by seed
#   scripts/chaos.sh --short [--seed N]                                 a fixed schedule of about three minutes
#   scripts/chaos.sh --self-test                                        changes behind its back must be found
#   scripts/chaos.sh --sweep                                            clears away what killed runs have left
#
# Prints the schedule, the faults by kind, the longest stall of each operation, and what was not as it must be.
# Exit 0: nothing. With --keep, and if anything failed, logs and data stay (their place is printed). As root.
# DFS_BIN is the program to test; without it, target/release/dfs is built.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  --seed | --short | --self-test | --sweep) ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin"
[ "$(id -u)" = 0 ] || { echo "chaos: must run as root: network namespaces and mounts need it" >&2; exit 1; }
for program in ip nft tc; do
  command -v $program >/dev/null || { echo "chaos: $program is not there: scripts/install-deps.sh" >&2; exit 1; }
done

if [ -z "${DFS_BIN:-}" ]; then
  cargo build --release --locked --quiet -p dfs
  export DFS_BIN=$PWD/target/release/dfs
fi
if [ -z "${CHAOS_BIN:-}" ]; then
  cargo build --release --locked --quiet -p dfs-tests --bin chaos --bin faultfs
  CHAOS_BIN=$PWD/target/release/chaos
fi
if [ "$1" = --sweep ]; then
  exec "$CHAOS_BIN" sweep
fi

# It clears everything away itself, also when we are killed; what is left when it is killed itself, we clear.
chaos=
trap '[ -z "$chaos" ] || kill "$chaos" 2>/dev/null || true; wait; "$CHAOS_BIN" sweep' EXIT
trap 'exit 130' INT TERM
run() {
  "$CHAOS_BIN" "$@" &
  chaos=$!
  local status=0
  wait "$chaos" || status=$?
  chaos=
  return $status
}
if [ "$1" != --self-test ]; then
  run "$@"
  exit
fi
# Whoever finds nothing here finds nothing ever.
log=$(mktemp)
status=0
run --seed 1 --minutes 0 --tamper >"$log" 2>&1 || status=$?
for what in 'holds Stamp' 'cells from .* instead of\|size .*, expected' 'none of its names\|not listed' 'not linearizable'; do
  grep -q "VIOLATION .*$what" "$log" || { cat "$log"; echo "chaos: not noticed: $what" >&2; exit 1; }
done
[ $status = 1 ] || { echo "chaos: exit $status with violations" >&2; exit 1; }
rm -r "$log" "$(sed -n 's/^logs and data are in //p' "$log")"
echo "chaos: a changed cell, size, name and history were all noticed"
