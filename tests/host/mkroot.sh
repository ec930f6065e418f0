#!/bin/bash
# Builds the test host's root: a minimal Debian with systemd, D-Bus and rootless podman.
#
#   mkroot.sh [SUITE]          build it unless it is cached; print its path
#   mkroot.sh --path [SUITE]   print the path it has or would have, building nothing
#
# SUITE: trixie (Debian 13, the default) or bookworm (Debian 12).
#
# Cache: ${HOSTLER_CACHE:-${XDG_CACHE_HOME:-~/.cache}/hostler}/root/<suite>-<key>, where the key is a hash of this file: a
# changed recipe is a new root, and an old one stays usable for other checkouts. The root is shared, read-only, as the
# lower layer of every host's overlay, so it is never modified once it has been renamed into place.
#
# Needs root, debootstrap and a Debian mirror: the one this machine's apt uses, or DEBIAN_MIRROR.
set -euo pipefail

only_path=
if [ "${1:-}" = --path ]; then only_path=yes; shift; fi
suite=${1:-trixie}
# What a host has: a real init with user sessions, rootless podman with both network backends and every helper that
# podman looks for at run time (catatonit for `init: true`, aardvark-dns for names), and what tests look around with.
packages=(
  systemd systemd-sysv dbus dbus-user-session libpam-systemd
  podman crun uidmap passt netavark aardvark-dns catatonit nftables fuse-overlayfs
  polkitd                                          # who may control the daemon over D-Bus
  curl procps iproute2 busybox-static tmux strace
  libfaketime                                      # clocks that jump, for one process
  rpm                                              # to install the other package where there is no other distribution
)
# podman 4.3 knows no passt.
case $suite in
  trixie) ;;
  bookworm) packages+=(slirp4netns) ;;
  *) echo "test host: no recipe for a root of Debian $suite, only for trixie and bookworm" >&2; exit 64 ;;
esac
# Units that have no business in a container: they would fail or wait.
masked=(
  systemd-modules-load.service systemd-udevd.service systemd-udev-trigger.service
  systemd-timesyncd.service systemd-networkd.service console-getty.service getty.target
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
  podman.socket podman-auto-update.timer podman-restart.service
)

say() { echo "test host: $*" >&2; }
die() { say "$*"; exit 1; }

cache=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}
key=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c1-16)
root=$cache/root/$suite-$key

if [ -n "$only_path" ]; then echo "$root"; exit 0; fi
if [ -d "$root" ]; then echo "$root"; exit 0; fi

[ "$(id -u)" = 0 ] || die "building the root needs root (debootstrap makes device nodes and foreign owners)"
command -v debootstrap >/dev/null || die "debootstrap is missing: run tests/host/prereqs.sh"

# One builder at a time; whoever waited finds it built.
mkdir -p "$cache/root"
exec 9>"$cache/root/.lock"
flock 9
if [ -d "$root" ]; then echo "$root"; exit 0; fi

mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
  grep -m1 '/debian/$' || true)}
[ -n "$mirror" ] || die "no Debian mirror in this machine's apt configuration: set DEBIAN_MIRROR"

tmp=$cache/root/.building-$suite-$key
rm -rf "$tmp"
say "building a Debian $suite root with podman (once; a minute or two) ..."
started=$SECONDS
log=$root.log
include=$(IFS=,; echo "${packages[*]}")
debootstrap --variant=minbase --include="$include" "$suite" "$tmp" "$mirror" >"$log" 2>&1 ||
  { tail -n 20 "$log" >&2; die "debootstrap failed; the whole log is $log"; }

for unit in "${masked[@]}"; do ln -sf /dev/null "$tmp/etc/systemd/system/$unit"; done
# Journals and boots must survive a reboot or a power cut, for tests read them afterwards.
mkdir -p "$tmp/var/log/journal"
# Each host gets its own identity at boot.
rm -f "$tmp/etc/machine-id" "$tmp/var/lib/dbus/machine-id" "$tmp/etc/hostname"
: >"$tmp/etc/machine-id"
printf "127.0.0.1 localhost\n::1 localhost\n" >"$tmp/etc/hosts"
# The outer machine may keep the pids controller on cgroup v1, where a rootless limit cannot be set.
mkdir -p "$tmp/etc/containers/containers.conf.d"
printf '[containers]\npids_limit = 0\n' >"$tmp/etc/containers/containers.conf.d/10-testhost.conf"
# Nothing is fetched inside a host, and half of the size is lists, caches and documentation.
rm -rf "$tmp"/var/cache/apt/* "$tmp"/var/lib/apt/lists/* "$tmp"/usr/share/{doc,man,locale,info,lintian}/*

sync -f "$tmp"
mv -T "$tmp" "$root"
rm -f "$log"
say "built $(du -sh "$root" | cut -f1) in $((SECONDS - started)) s"
echo "$root"
