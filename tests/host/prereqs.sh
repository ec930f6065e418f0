#!/bin/bash
# Installs what this machine lacks of what tests and demo need, and says what: prereqs.sh [--native]
#
# Without --native: what builds Hostler, builds engine images and runs the test host. With it: what Hostler itself needs to run on
# this machine (for a demo where systemd is PID 1). Does nothing, quickly, where all is there.
set -euo pipefail

packages=(
  build-essential curl python3 python3-pip python3-venv util-linux procps     # build, images, models
  nginx-light haproxy openssl                                                 # what the front door is tried against
  debootstrap debian-archive-keyring systemd-container                        # the test host
  dbus                                                                        # a private bus
  debhelper lintian rpm rpmlint                                               # packages, and what is wrong with them
)
# A browser for the dashboard's test.
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then packages+=(chromium); fi
# For the real clients. Another Node.js than Debian's brings its own npm, and Debian's conflicts with it.
for program in node npm; do
  command -v "$program" >/dev/null || packages+=("${program/%node/nodejs}")
done
if [ "${1:-}" = --native ]; then
  packages+=(podman crun uidmap passt slirp4netns netavark aardvark-dns catatonit dbus-user-session libpam-systemd)
fi

say() { echo "prereqs: $*" >&2; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  say "this is not a Debian machine: install the equivalents of ${packages[*]} yourself, if they are missing"
  command -v systemd-nspawn >/dev/null && command -v debootstrap >/dev/null && exit 0
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then exit 0; fi

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { say "as root, run: apt-get install ${missing[*]}"; exit 1; }
  as_root=(sudo)
fi
say "installing ${missing[*]}"
install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}")
# The lists may be old or absent: fetch them only where the install fails without.
"${install[@]}" >/dev/null 2>&1 || { "${as_root[@]}" apt-get -qq update && "${install[@]}" >/dev/null; }
