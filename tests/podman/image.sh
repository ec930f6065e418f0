#!/bin/sh
# Writes an image for the contract tests: nothing but a static busybox.
#
#   tests/podman/image.sh OUT.tar [BUSYBOX]     then: podman import OUT.tar localhost/busybox:1
set -eu
out=$1
busybox=${2:-$(command -v busybox || true)}
[ -n "$busybox" ] || { echo "image.sh: no busybox here; install busybox-static or name one" >&2; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/tmp" "$root/etc"
cp "$busybox" "$root/bin/busybox"
chmod 755 "$root" "$root/bin" "$root/bin/busybox"
echo "weights in an image" >"$root/etc/marker"
"$root/bin/busybox" true || { echo "image.sh: $busybox does not run here" >&2; exit 1; }
tar --owner=0 --group=0 --numeric-owner -C "$root" -cf "$out" .
