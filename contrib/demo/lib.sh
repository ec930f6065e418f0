# Where the demo runs, and how to do things there; to be sourced by demo.sh and stop.sh.
#
# With systemd as PID 1 the demo uses this machine's own units. Without, it boots the test host, with the same units in it.
# `on_host` runs a command there as root, `as_service` as the service user in its own manager.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

name=demo
testhost=${CARGO_TARGET_DIR:-target}/release/hostler-testhost

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)

if [ -d /run/systemd/system ] && [ "$(cat /proc/1/comm)" = systemd ]; then native=yes; else native=no; fi

if [ $native = yes ]; then
  on_host() { "${sudo[@]}" "$@"; }
  as_service() {
    local uid
    uid=$(id -u hostler)
    "${sudo[@]}" runuser -u hostler -- env -C / "XDG_RUNTIME_DIR=/run/user/$uid" \
      "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$uid/bus" systemd-run --user --quiet --pipe --wait --collect -- "$@"
  }
else
  # sudo drops the environment, and the cache must be the same one.
  as_root() {
    "${sudo[@]}" env "PATH=$PATH:/usr/sbin:/sbin" "HOSTLER_CACHE=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}" \
      ${DEBIAN_MIRROR:+"DEBIAN_MIRROR=$DEBIAN_MIRROR"} "$@"
  }
  on_host() { as_root "$testhost" exec $name "$@"; }
  as_service() { as_root "$testhost" user $name hostler "$@"; }
fi
