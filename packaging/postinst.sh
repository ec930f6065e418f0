#!/bin/sh
# Post-install: everything that files alone cannot do. Idempotent; the deb and rpm run it, and so may an administrator
# after `make install`. Needs root. Without a running systemd (an image build) it stops after the users and files.
#
# The order matters. Podman remembers the user's id mapping from its first start: without subordinate ids at that
# moment it maps a single id, and its pause process keeps that until it ends.
set -eu

user=hostler
range=65536
first=100000

say() { echo "hostler: $*" >&2; }

# Prints the first of `range` ids that no line of /etc/subuid or /etc/subgid covers.
free_range() {
  cat /etc/subuid /etc/subgid 2>/dev/null | awk -F: -v range="$range" -v at="$first" '
    BEGIN { n = 0 }
    NF >= 3 { start[n] = $2 + 0; end[n] = $2 + $3; n++ }
    END {
      do {
        moved = 0
        for (i = 0; i < n; i++)
          if (start[i] < at + range && end[i] > at) { at = end[i]; moved = 1 }
      } while (moved)
      print at
    }'
}

has_range() { # FILE: the user has at least `range` ids there
  [ -e "$1" ] && awk -F: -v user="$user" -v range="$range" \
    '$1 == user && $3 >= range { found = 1 } END { exit !found }' "$1"
}

[ "$(id -u)" = 0 ] || { say "the post-install script needs root"; exit 1; }

# One that is there is taken as it is, and a purge would delete it.
home=$(getent passwd "$user" | cut -d : -f 6)
case $home in
  '' | /var/lib/hostler) ;;
  *)
    say "there is a user $user already, with the home $home, which is not /var/lib/hostler: rename it (usermod --login), then run $0 again"
    exit 1
    ;;
esac

systemd-sysusers hostler.conf

if ! has_range /etc/subuid || ! has_range /etc/subgid; then
  from=$(free_range)
  to=$((from + range - 1))
  has_range /etc/subuid || usermod --add-subuids "$from-$to" "$user"
  has_range /etc/subgid || usermod --add-subgids "$from-$to" "$user"
fi

systemd-tmpfiles --create hostler.conf
# Where there is none. One that is there stays whose it is: a disk for the models, read-only or somebody's. As the service user, whose
# directory this is made in: it could put a link there.
models=/var/lib/hostler/models
[ -e "$models" ] || [ -L "$models" ] || runuser -u "$user" -- mkdir -m 0755 "$models"
# What `journalctl -x` says of Hostler's lines. Packages of systemd do it by a trigger; `make install` has none.
journalctl --update-catalog 2>/dev/null || say "the journal's catalogue could not be updated, ignoring"

# drop_in VERSION NAME LINE ...: lines of [Service] for systemd of that version or newer. Older ones would ignore them, with a
# warning at every turn: so the units themselves do not have them.
drop_in() {
  since=$1 name=$2
  shift 2
  [ "$systemd" -ge "$since" ] || return 0
  for manager in system user; do
    mkdir -p "/etc/systemd/$manager/hostler.service.d"
    printf '%s\n' '# Written by the post-install script of Hostler.' '[Service]' "$@" \
      >"/etc/systemd/$manager/hostler.service.d/$name.conf"
  done
}
systemd=$(systemctl --version | awk 'NR == 1 { print int($2) }')
# systemctl waits for the end of a reload. Without the type there would be nothing to reload by.
drop_in 253 10-reload 'Type=notify-reload' 'ExecReload='
# A daemon that cannot start is tried less and less often; without, every second.
drop_in 254 10-restart 'RestartSteps=5' 'RestartMaxDelaySec=30s'

# When the host goes down the daemon stops first, while podman and the engines, which end with the service user's manager, are still
# there to be stopped gently. The unit cannot say so: the number of the user is this host's.
uid=$(id -u "$user")
mkdir -p /etc/systemd/system/hostler.service.d
printf '%s\n' '# Written by the post-install script of Hostler.' '[Unit]' "After=user@$uid.service" \
  >/etc/systemd/system/hostler.service.d/10-order.conf

[ -d /run/systemd/system ] || exit 0

systemctl daemon-reload
# The bus reads new policies when told to, polkit by itself.
busctl call org.freedesktop.DBus / org.freedesktop.DBus ReloadConfig >/dev/null 2>&1 || say "no system bus: no control over D-Bus"
# The linger file is there since tmpfiles, but logind reads it only when it starts; this starts the user's manager now.
systemctl start "user@$uid.service"
as_user() { runuser -u "$user" -- env XDG_RUNTIME_DIR="/run/user/$uid" systemctl --user "$@"; }
as_user daemon-reload
as_user start hostler-podman.socket hostler-bus.socket
# Those that run from before an upgrade may listen elsewhere. Only the API goes with them: containers have scopes of their own.
if [ ! -S /run/hostler/service/podman.sock ] || [ ! -S /run/hostler/service/bus.sock ]; then
  as_user stop hostler-podman.service hostler-bus.service
  as_user restart hostler-podman.socket hostler-bus.socket
fi
