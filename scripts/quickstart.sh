#!/usr/bin/env bash
# From nothing to a mounted three-replica file system with real files in it.
#
#   scripts/quickstart.sh [DATA [MOUNT]]     (default: /var/tmp/dfs-quickstart and /mnt/dfs)
#
# Installs what is missing (Debian packages), builds dfs, starts a master and three chunk servers on this machine,
# mounts, copies /usr/include in, compares every byte, and shows `dfs status`. The cluster keeps running; the last
# lines say how to stop it. A second run takes up the same data.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-/var/tmp/dfs-quickstart}
mount=${2:-/mnt/dfs}
port=${DFS_UP_BASE_PORT:-7000}

say() { printf '\n== %s\n' "$*"; }

say "installing what is missing"
scripts/install-deps.sh run

say "building (a few minutes the first time)"
cargo build --release --locked -p dfs
dfs=$PWD/target/release/dfs

say "starting a cluster in $data, mounted on $mount"
mkdir -p "$data"
log=$data.log
setsid "$dfs" up --data "$data" --mount "$mount" --base-port "$port" >"$log" 2>&1 </dev/null &
up=$!
for ((i = 0; i < 600; i++)); do
  grep -q '^ready: ' "$log" && break
  kill -0 "$up" 2>/dev/null || { tail -n 20 "$log"; echo "dfs up did not start; its log is $log" >&2; exit 1; }
  sleep 0.1
done
grep -q '^ready: ' "$log" || { tail -n 20 "$log"; echo "dfs up is not ready after 60 s; its log is $log" >&2; exit 1; }
sed -n '/^part /,/^ready/p' "$log"

say "copying /usr/include in, and comparing every byte"
mkdir -p "$mount/include"
cp -a /usr/include/. "$mount/include/"
diff -r --no-dereference /usr/include "$mount/include" && echo "all the same: $(find "$mount/include" -type f | wc -l) files"
df -h "$mount"

say "dfs status"
"$dfs" status --master "127.0.0.1:$port"

cat <<END

$mount is mounted and holds real files: use it.
  log      $log
  status   $dfs status --master 127.0.0.1:$port
  a file   $dfs info $mount/include/stdio.h --master 127.0.0.1:$port
  stop     kill $up        (unmounts and stops cleanly; the data stays in $data)
END
