#!/usr/bin/env bash
# Installs the built binary, and the name under which mount(8) finds it.
#
#   scripts/install.sh [PREFIX]     (default: /usr/local)
#
# Afterwards `mount -t fuse.dfs HOST:7000 DIR -o OPTIONS` works, and so does a line of /etc/fstab:
#   HOST:7000  /mnt/dfs  fuse.dfs  noatime,_netdev  0 0
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=${1:-/usr/local}
[ -x target/release/dfs ] || { echo "target/release/dfs is not there: cargo build --release -p dfs" >&2; exit 1; }
install -D -m 755 target/release/dfs "$prefix/bin/dfs"
# mount(8) looks for its helpers in /sbin alone.
ln -sfn "$prefix/bin/dfs" /sbin/mount.fuse.dfs
echo "installed $prefix/bin/dfs and /sbin/mount.fuse.dfs"
