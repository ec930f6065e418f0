#!/bin/sh
# Purge: nothing of Hostler is left but what administrators wrote outside its own directories. Idempotent; the deb runs it on purge, and
# so may an administrator of any other system after the removal. Needs root, and that the pre-removal script has run.
#
# Models, state, and podman's images, containers, volumes and networks are all below the service user's home.
set -eu

user=hostler

uid=$(id -u "$user" 2>/dev/null || true)
for dir in /var/lib/hostler /run/hostler /etc/hostler; do
  [ -d "$dir" ] || continue
  find "$dir" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
  # Where an administrator has mounted a disk there, the mount stays.
  mountpoint --quiet "$dir" || rmdir "$dir"
done
rm -f "/var/lib/systemd/linger/$user"
# Written by the post-install script, and by `hostler add`.
for manager in system user; do
  rm -f "/etc/systemd/$manager/hostler.service.d/10-reload.conf" "/etc/systemd/$manager/hostler.service.d/10-restart.conf"
  rmdir "/etc/systemd/$manager/hostler.service.d" 2>/dev/null || true
done
if [ -n "$uid" ]; then
  rm -rf "/dev/shm/libpod_rootless_lock_$uid"
  # Takes the user's range of subordinate ids along.
  userdel "$user"
fi
for group in "$user" "$user-admin"; do
  if getent group "$group" >/dev/null; then groupdel "$group"; fi
done
