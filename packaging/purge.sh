#!/bin/sh
# Purge: nothing of Hostler is left but what administrators wrote outside its own directories. Idempotent; the deb runs it on purge, and
# so may an administrator of any other system after the removal. Needs root, and that the pre-removal script has run.
#
# Models, state, and podman's images, containers, volumes and networks are all below the service user's home. What is mounted there is
# somebody's disk and may hold more than models: it is not entered, and the directories above it stay.
set -eu

user=hostler

say() { echo "hostler: $*" >&2; }

# Where something is mounted, one a line. By the kernel's list and not by devices alone: a directory that is mounted a second time is
# on the device of its surroundings.
mounts="
$(cut -d ' ' -f 5 /proc/self/mountinfo 2>/dev/null | sed 's/\\040/ /g; s/\\011/	/g; s/\\134/\\/g')
"

is_mounted() {
  case $mounts in
  *"
$1
"*) true ;;
  *) false ;;
  esac
}

# Removes $1, but neither what is mounted nor what leads there.
remove() {
  if is_mounted "$1"; then
    say "$1 stays: something is mounted there"
    return
  fi
  case $mounts in
  *"
$1/"*)
    empty "$1"
    rmdir "$1" 2>/dev/null || true
    ;;
  # rm says what it could not remove.
  *) rm -rf --one-file-system -- "$1" || true ;;
  esac
  if [ -e "$1" ]; then say "$1 stays, with what is left in it"; fi
}

empty() {
  for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    # A pattern without a match stands for itself.
    if [ -e "$entry" ] || [ -L "$entry" ]; then remove "$entry"; fi
  done
}

uid=$(id -u "$user" 2>/dev/null || true)
# An account of that name with another home is somebody else's.
home=$(getent passwd "$user" | cut -d : -f 6)
if [ -n "$uid" ] && [ "$home" != /var/lib/hostler ]; then
  say "the user $user with the home $home stays: it is not Hostler's"
  uid=
fi
for dir in /var/lib/hostler /run/hostler /etc/hostler; do
  if [ -L "$dir" ]; then
    say "$dir stays: it is a link to $(readlink "$dir")"
  elif [ -d "$dir" ]; then
    # The kernel's list has no links in its paths.
    dir=$(readlink -f "$dir")
    # A disk that is mounted right there was given to Hostler alone.
    if is_mounted "$dir"; then empty "$dir"; fi
    remove "$dir"
  fi
done
rm -f "/var/lib/systemd/linger/$user"
# Made by `systemctl enable hostler-model@…` and `add-wants … hostler.service`: without the units there is nothing that could disable them.
find /etc/systemd/system /etc/systemd/user -mindepth 2 -maxdepth 2 -type l \
  \( -name 'hostler-model@*.service' -o -name 'hostler*' -xtype l \) -delete 2>/dev/null || true
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
# Written by the post-install script, and by `hostler add`.
for manager in system user; do
  for name in order reload restart; do
    rm -f "/etc/systemd/$manager/hostler.service.d/10-$name.conf"
  done
  rmdir "/etc/systemd/$manager/hostler.service.d" 2>/dev/null || true
done
if [ -n "$uid" ]; then
  rm -rf "/dev/shm/libpod_rootless_lock_$uid"
  # Takes the user's range of subordinate ids along.
  userdel "$user"
fi
if [ -n "$home" ] && [ -z "$uid" ]; then groups=$user-admin; else groups="$user $user-admin"; fi
for group in $groups; do
  if getent group "$group" >/dev/null; then groupdel "$group"; fi
done
