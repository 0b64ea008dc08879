# The functions by which a benchmark that compares file systems drives dfs: one master and three chunk servers on this
# machine, three replicas, one mount. Sourced, by bash; it expects
#
#   WORK        a directory for all data               IP    the address servers listen on (default 127.0.0.1)
#   DFS_MOUNT_OPTIONS  more options of the mount       DFS_BASE_PORT  (default 7600)
#
#   install_dfs  builds it        start_dfs / stop_dfs    the servers       servers_dfs / client_dfs  print process ids
#   mount_dfs / umount_dfs        the mount               dir_dfs           prints the directory to measure
#   ready_dfs    succeeds once every chunk server may take replicas
#
# Servers end by SIGTERM, which is an orderly stop; their data stays in WORK/dfs and is found again.
DFS_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DFS_PROGRAM=${DFS_BIN:-$DFS_HOME/target/release/dfs}
DFS_DIR=$WORK/dfs
DFS_POINT=$WORK/mnt/dfs
DFS_PORT=${DFS_BASE_PORT:-7600}

dfs_address() { echo "${IP:-127.0.0.1}"; }
dfs_pids() { # dfs_pids NAME..: process ids of those parts that run
  local name pid
  for name in "$@"; do
    pid=$(cat "$DFS_DIR/$name.pid" 2>/dev/null) || continue
    [ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$(readlink -f "$DFS_PROGRAM")" ] && echo "$pid"
  done
  return 0
}
dfs_run() { # dfs_run NAME ARGUMENT..: starts a part, its log in NAME.log
  local name=$1
  shift
  setsid "$DFS_PROGRAM" "$@" >>"$DFS_DIR/$name.log" 2>&1 </dev/null &
  echo $! >"$DFS_DIR/$name.pid"
  disown
}
dfs_wait() { # dfs_wait SECONDS COMMAND..: until it succeeds
  local tries=$(($1 * 10))
  shift
  for (( ; tries > 0; tries--)); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  return 1
}
dfs_ended() { [ -z "$(dfs_pids "$@")" ]; }
dfs_end() { # dfs_end NAME..: asks each to stop, waits for it
  local pid
  for pid in $(dfs_pids "$@"); do kill "$pid"; done
  dfs_wait 60 dfs_ended "$@" || { echo "dfs: $* do not end after SIGTERM" >&2; kill -9 $(dfs_pids "$@"); return 1; }
}
dfs_healthy() { # dfs_healthy PORT: its /healthz says 200
  local line
  exec 9<>"/dev/tcp/$(dfs_address)/$1" || return 1
  printf 'GET /healthz HTTP/1.1\r\nHost: dfs\r\nConnection: close\r\n\r\n' >&9
  read -r line <&9
  exec 9>&-
  case $line in *" 200 "*) return 0 ;; *) return 1 ;; esac
}
dfs_all_healthy() {
  local port
  for port in $((DFS_PORT + 2)) $((DFS_PORT + 101)) $((DFS_PORT + 111)) $((DFS_PORT + 121)); do
    (dfs_healthy "$port") 2>/dev/null || return 1
  done
}

install_dfs() {
  [ -n "${DFS_BIN:-}" ] && return 0
  (cd "$DFS_HOME" && scripts/install-deps.sh run && cargo build --release --locked -p dfs)
}
start_dfs() {
  local n ip
  ip=$(dfs_address)
  case $ip in 127.*) ;; *) ip addr show dev lo | grep -qF "inet $ip/" || ip addr add "$ip/32" dev lo || return 1 ;; esac
  mkdir -p "$DFS_DIR/master" "$DFS_POINT"
  dfs_run master master --data "$DFS_DIR/master" --listen "$ip:$DFS_PORT"
  for n in 1 2 3; do
    mkdir -p "$DFS_DIR/chunkd$n"
    dfs_run "chunkd$n" chunkd --data "$DFS_DIR/chunkd$n" --master "$ip:$DFS_PORT" --listen "$ip:$((DFS_PORT + 90 + 10 * n))"
  done
  dfs_wait 60 dfs_all_healthy || { tail -n 5 "$DFS_DIR"/*.log >&2; return 1; }
}
mount_dfs() {
  mkdir -p "$DFS_POINT"
  dfs_run mount mount "$(dfs_address):$DFS_PORT" "$DFS_POINT" -f ${DFS_MOUNT_OPTIONS:+-o "$DFS_MOUNT_OPTIONS"}
  dfs_wait 30 grep -qF " $DFS_POINT fuse" /proc/mounts || { tail -n 5 "$DFS_DIR/mount.log" >&2; return 1; }
}
ready_dfs() { dfs_all_healthy; }
umount_dfs() {
  grep -qF " $DFS_POINT fuse" /proc/mounts && { umount "$DFS_POINT" || { sleep 1; umount "$DFS_POINT" || umount -l "$DFS_POINT"; }; }
  # The process ends once everything is written and the session closed.
  dfs_wait 60 dfs_ended mount || dfs_end mount
}
stop_dfs() {
  dfs_end mount
  dfs_end chunkd1 chunkd2 chunkd3
  dfs_end master
}
servers_dfs() { dfs_pids master chunkd1 chunkd2 chunkd3; }
client_dfs() { dfs_pids mount; }
dir_dfs() { echo "$DFS_POINT"; }
