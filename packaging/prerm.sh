#!/bin/sh
# Pre-removal: drains and stops, so that nothing of Hostler runs when its files go. Idempotent; the deb and rpm run it before they
# remove the package (never before an upgrade), and so may an administrator before `rm`. Needs root.
#
# Units that hold models first, while there is a daemon that can let go of them; then the sockets, so that nobody starts it again; then the
# daemon, which lets requests finish and stops its models; then the models that `on_stop = "keep"` has left, by the service user's
# podman; then that user's manager.
set -eu

user=hostler

say() { echo "hostler: $*" >&2; }

[ "$(id -u)" = 0 ] || { say "the pre-removal script needs root"; exit 1; }
[ -d /run/systemd/system ] || exit 0

systemctl stop 'hostler-model@*.service'
systemctl stop hostler.socket hostler-unix.socket hostler.service
uid=$(id -u "$user" 2>/dev/null) || exit 0
if systemctl --quiet is-active "user@$uid.service"; then
  ours=$(cd / && runuser -u "$user" -- env XDG_RUNTIME_DIR="/run/user/$uid" podman ps --all --quiet --filter label=io.hostler.namespace) || {
    say "podman of the user $user cannot be asked for containers; they end with the user's manager"
    ours=
  }
  if [ -n "$ours" ]; then
    say "stopping models that were kept"
    # One word each.
    # shellcheck disable=SC2086
    (cd / && runuser -u "$user" -- env XDG_RUNTIME_DIR="/run/user/$uid" podman rm --force --volumes $ours >/dev/null)
  fi
fi
rm -f "/var/lib/systemd/linger/$user"
systemctl stop "user@$uid.service" "user-runtime-dir@$uid.service"
systemctl stop run-hostler-engines.mount
