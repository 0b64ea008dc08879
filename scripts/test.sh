#!/usr/bin/env bash
# Everything a change must pass: format, lints, tests of all crates, alerting rules, thousands of simulated clusters, a real
# cluster under real workloads and kill -9, chaos, POSIX conformance. CI runs the same. As root, with /dev/fuse.
#
#   scripts/test.sh             all of it
#   scripts/test.sh --soak      longer: loads in the cluster tests, 50,000 simulated clusters, an hour of chaos (before a release)
#
# A line for each stage says how many seconds it took; the last lines say what failed. Exit 0: nothing.
# TMPDIR must be on a real disk: the clusters keep their data there.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
case ${1:-} in
  "") ;;
  --soak) export DFS_TEST_SOAK=1 ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:/usr/sbin:/sbin"
export CARGO_TERM_COLOR=never
scratch=$(mktemp -d "${TMPDIR:-/tmp}/dfs-test.XXXXXX")
# Cases become other users, who must be able to come this far.
chmod 755 "$scratch"
export TMPDIR=$scratch
failed=() report=() started=$SECONDS up=

cleanup() {
  stop_cluster
  # What a killed test left mounted below our own directory.
  awk -v here="$scratch/" 'index($2, here) == 1 {print $2}' /proc/mounts | sort -r | while read -r point; do
    echo "left mounted: $point" >&2
    umount -l "$point"
  done
  rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# stage NAME COMMAND..: runs it, notes its time and whether it failed.
stage() {
  local name=$1 start=$SECONDS status=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || status=$?
  report+=("$(printf '%5d s  %-34s %s' $((SECONDS - start)) "$name" "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")")")
  echo "== $name: $((SECONDS - start)) s, $([ $status = 0 ] && echo ok || echo "FAILED ($status)")"
  [ $status = 0 ] || failed+=("$name")
  return $status
}
finish() {
  printf '\n== stages\n'
  printf '%s\n' "${report[@]}"
  echo "$(printf '%5d s' $((SECONDS - started)))  in all"
  for log in "$scratch"/nextest-*.log; do
    [ -e "$log" ] || continue
    printf '\n== nextest: %s\n' "$(basename "$log" .log)"
    sed -n '/^ *Summary \[/,$p' "$log"
  done
  [ ${#failed[@]} = 0 ] || { printf '\nFAILED: %s\n' "${failed[*]}"; exit 1; }
  printf '\nall passed\n'
  exit 0
}

nextest() { # nextest LOG ARGUMENT..
  local log=$scratch/nextest-$1.log
  shift
  cargo nextest run --locked --workspace "$@" 2>&1 | tee "$log"
}
rules() {
  promtool check config monitoring/prometheus/prometheus.yml &&
    promtool check rules monitoring/prometheus/rules/*.yml &&
    promtool test rules monitoring/prometheus/tests/*.yml
}
# A cluster of its own for the suites that want a mounted directory; their cases become other users.
start_cluster() {
  local port
  mkdir -p "$scratch/up" "$scratch/mnt"
  for port in $(seq 21000 1000 60000); do
    ! ss_busy "$port" && break
  done
  "$DFS_BIN" up --data "$scratch/up" --mount "$scratch/mnt" --base-port "$port" -o allow_other >"$scratch/up.log" 2>&1 </dev/null &
  up=$!
  for ((i = 0; i < 600; i++)); do
    grep -q '^ready: ' "$scratch/up.log" && return 0
    kill -0 "$up" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 30 "$scratch/up.log"
  echo "dfs up did not get ready" >&2
  return 1
}
# Whether something listens on one of the ports that `dfs up` would take.
ss_busy() {
  local p
  for p in "$1" $(($1 + 1)) $(($1 + 2)) $(($1 + 100)) $(($1 + 110)) $(($1 + 120)) $(($1 + 200)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null && return 0
  done
  return 1
}
stop_cluster() {
  [ -n "$up" ] || return 0
  kill "$up" 2>/dev/null
  local status=0
  wait "$up" || status=$?
  up=
  [ $status = 0 ] || { tail -n 20 "$scratch/up.log"; echo "dfs up ended with $status" >&2; }
  return $status
}

stage "dependencies" scripts/install-deps.sh || finish
stage "format" cargo fmt --all -- --check
stage "lints" cargo clippy --locked --workspace --all-targets -- -D warnings || finish
stage "alerting rules" rules
stage "tests of crates" nextest crates -E 'not binary(/^cluster_/)'
if [ -n "${DFS_TEST_SOAK:-}" ]; then
  stage "simulator" scripts/sim.sh --seeds 50000 --threads 2 --keep-going
else
  stage "simulator" scripts/sim.sh --seeds 3000 --minutes 8 --threads 2
fi
stage "simulator finds planted bugs" scripts/sim.sh --catalogue
stage "release build" cargo build --release --locked -p dfs || finish
export DFS_BIN=$PWD/target/release/dfs
stage "cluster tests" nextest cluster -E 'binary(/^cluster_/)'
stage "build of chaos" cargo build --locked -p dfs-tests --bin chaos --bin faultfs
export CHAOS_BIN=$PWD/target/debug/chaos
if [ -n "${DFS_TEST_SOAK:-}" ]; then
  stage "chaos" scripts/chaos.sh --seed "$RANDOM" --minutes 60
else
  stage "chaos" scripts/chaos.sh --short --seed 102
fi
if stage "start of a cluster" start_cluster; then
  stage "pjdfstest" scripts/pjdfstest.sh "$scratch/mnt"
  stage "fstests" fstests/run.sh "$scratch/mnt"
  stage "stop of the cluster" stop_cluster
fi
finish
