#!/usr/bin/env bash
# Runs pjdfstest (POSIX conformance, the Rust suite of crates.io) on a directory, as root.
#
#   scripts/pjdfstest.sh DIR [TEST_PATTERN..]
#
# Installs it into target/tools if it is not there. A failure that fstests/skip/pjdfstest.txt does not list, with its
# reason, fails the run; so do fewer than 90 % of tests passed. A listed test that passes is reported: take it off.
set -euo pipefail
[ $# -ge 1 ] && [ -d "$1" ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
directory=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
version=0.2.2
tool=target/tools/bin/pjdfstest
listed=fstests/skip/pjdfstest.txt
[ "$(id -u)" = 0 ] || { echo "pjdfstest.sh: must run as root: the suite switches users" >&2; exit 1; }

if ! "$tool" --version 2>/dev/null | grep -qF "$version"; then
  echo "installing pjdfstest $version into target/tools"
  cargo install --quiet --locked --root target/tools --target-dir target/tools/build "pjdfstest@$version"
  rm -rf target/tools/build
fi

work=$(mktemp -d)
place=$(mktemp -d "$directory/pjdfstest.XXXXXX")
chmod 755 "$place"
# The EXDEV cases want a second file system.
second=()
if [ -d /dev/shm ] && [ "$(stat -c %d /dev/shm)" != "$(stat -c %d "$place")" ]; then
  second=(-s "$(mktemp -d /dev/shm/pjdfstest.XXXXXX)")
fi
trap 'rm -rf "$work" "$place" "${second[@]:1}"' EXIT

# The two users exist on every Debian. naptime is longer than one tick of any kernel's coarse clock. The EROFS cases are
# skipped by the suite: it would remount what it runs on.
cat >"$work/config.toml" <<'C'
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
C

status=0
timeout "${PJDFSTEST_TIMEOUT:-600}" "$tool" -c "$work/config.toml" -p "$place" "${second[@]}" "$@" >"$work/out" 2>"$work/err" || status=$?
[ "$status" -ne 124 ] || { tail -n 3 "$work/out"; echo "pjdfstest did not end in ${PJDFSTEST_TIMEOUT:-600} s" >&2; exit 1; }
summary=$(grep '^Summary: ' "$work/out") || { tail -n 20 "$work/out" "$work/err"; echo "pjdfstest ended ($status) without a summary" >&2; exit 1; }

by_outcome() { awk -v outcome="$1" 'NF == 2 && $2 == outcome {print $1}' "$work/out" | sort; }
by_outcome FAILED >"$work/failed"
by_outcome ok >"$work/ok"
sed 's/[[:space:]]*#.*//; /^[[:space:]]*$/d' "$listed" | sort >"$work/listed"
bad=0
if grep -nvE '^[[:space:]]*(#|$)|^[^#[:space:]]+[[:space:]]+#[[:space:]]*[^[:space:]]' "$listed"; then
  echo "$listed: each line is a test's name and '# reason'" >&2
  bad=1
fi

while read -r name; do
  echo "FAILED, not listed: $name"
  awk -v name="$name" '$1 == name {on = 1; next} on && /^[^[:space:]]/ {exit} on && /Backtrace/ {exit} on' "$work/out" | head -n 6
  bad=1
done < <(comm -23 "$work/failed" "$work/listed")
comm -12 "$work/failed" "$work/listed" | while read -r name; do echo "failed as listed: $(grep -F "$name " "$listed" | head -n 1)"; done
comm -12 "$work/ok" "$work/listed" | while read -r name; do echo "passes, so take it off $listed: $name"; done

echo "pjdfstest $version on $directory: ${summary#Summary: }"
passed=$(wc -l <"$work/ok") failed=$(wc -l <"$work/failed")
if [ $((passed * 10)) -lt $(((passed + failed) * 9)) ]; then
  echo "only $passed of $((passed + failed)) passed: at least 90 % must" >&2
  bad=1
fi
exit $bad
