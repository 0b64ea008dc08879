#!/usr/bin/env bash
# Runs our own POSIX cases, one file a call, on a local directory (the oracle: there all must pass) and then on DIR.
#
#   fstests/run.sh DIR [CALL..]        for example: fstests/run.sh /mnt/dfs rename lseek
#
# A case that dfs cannot pass is listed in fstests/skip/own.txt with its reason; it fails the run if it passes after all.
# As root, with python3. The oracle is TMPDIR (default /tmp): it must not be a tmpfs without what ext4 can do.
set -euo pipefail
[ $# -ge 1 ] && [ -d "$1" ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
directory=$(cd "$1" && pwd)
shift
oracle=$(mktemp -d)
place=$(mktemp -d "$directory/fstests.XXXXXX")
trap 'rm -rf "$oracle" "$place"' EXIT
# Cases become other users.
chmod 755 "$oracle" "$place"
export PYTHONDONTWRITEBYTECODE=1
python3 "$here/runner.py" --oracle "$oracle" "$@"
python3 "$here/runner.py" --skip "$here/skip/own.txt" "$place" "$@"
