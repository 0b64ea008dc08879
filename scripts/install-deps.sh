#!/usr/bin/env bash
# Makes this machine ready for dfs, and says what it cannot do by itself.
#
#   scripts/install-deps.sh run     what building and running needs
#   scripts/install-deps.sh         that, and what scripts/test.sh needs
#
# Debian or a relative of it, as root. Only what is missing is installed; nothing that is there is upgraded, and no
# service is started.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}
case $what in
  run) packages=(fuse3 gcc libc6-dev) ;;
  test)
    packages=(fuse3 gcc libc6-dev pkg-config fio attr acl sqlite3 git prometheus python3 tar coreutils util-linux procps
      iproute2 nftables e2fsprogs)
    ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

die() { echo "install-deps: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "must run as root: mounting needs it (try: sudo $0 $what)"

# A package counts as there if its program is, whoever installed it.
declare -A program=([fuse3]=fusermount3 [gcc]=gcc [pkg-config]=pkg-config [fio]=fio [attr]=setfattr [acl]=setfacl
  [sqlite3]=sqlite3 [git]=git [prometheus]=promtool [python3]=python3 [tar]=tar [coreutils]=sha256sum
  [util-linux]=mount [procps]=pgrep [iproute2]=ip [nftables]=nft [e2fsprogs]=mkfs.ext4)
missing=()
for package in "${packages[@]}"; do
  if [ -n "${program[$package]:-}" ]; then
    PATH=$PATH:/usr/sbin:/sbin command -v "${program[$package]}" >/dev/null || missing+=("$package")
  else
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
  fi
done

if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || die "missing: ${missing[*]}; there is no apt-get here: install them by hand"
  echo "installing ${missing[*]}"
  # Debian's prometheus would start as a service: a policy of "no" keeps every service down while we install.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  log=$(mktemp)
  apt() { DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get "$@" >>"$log" 2>&1; }
  apt install -y -q --no-install-recommends "${missing[@]}" || {
    apt update -q || true
    apt install -y -q --no-install-recommends "${missing[@]}" || {
      tail -n 20 "$log" >&2
      die "apt-get could not install ${missing[*]} (its output is in $log): install them by hand, then run this again"
    }
  }
  rm -f "$log"
fi

if [ ! -e /dev/fuse ]; then
  modprobe fuse 2>/dev/null || true
  [ -e /dev/fuse ] || die "/dev/fuse is not there: load the kernel module (modprobe fuse); in a container, start it with \
--device /dev/fuse --cap-add SYS_ADMIN"
fi
# Opening it tells whether a container's device rules let us.
(exec 3<>/dev/fuse) 2>/dev/null || die "/dev/fuse cannot be opened: in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"

export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
command -v cargo >/dev/null || die "cargo is not there: install Rust (https://rustup.rs), at least the rust-version of Cargo.toml"
want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
have=$(rustc --version | awk '{print $2}')
[ "$(printf '%s\n%s\n' "$want" "${have%%-*}" | sort -V | head -n 1)" = "$want" ] ||
  die "rustc is $have, at least $want is needed: rustup update stable"

if [ "$what" = test ]; then
  for component in fmt clippy; do
    cargo "$component" --version >/dev/null 2>&1 || rustup component add "$([ $component = fmt ] && echo rustfmt || echo clippy)" ||
      die "cargo $component is not there: rustup component add rustfmt clippy"
  done
  cargo nextest --version >/dev/null 2>&1 || {
    echo "installing cargo-nextest (a few minutes)"
    cargo install --quiet --locked cargo-nextest || die "cargo install --locked cargo-nextest failed"
  }
fi
