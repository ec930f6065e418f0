#!/bin/sh
# Builds the stand-in engine as a static program and writes a container image of it.
#
#   image.sh OUT.tar           an archive for `podman load`, localhost/hostler/fake-engine:latest
#   image.sh --binary OUT      the program alone
#
# Prints the path of what it made. Needs cargo, tar and coreutils; no podman, no network, no root. The image is FROM scratch: the
# program, the names `vllm` and `llama-server` (also /app/llama-server) for it, and an empty /tmp. The same program gives the
# same bytes. CARGO_TARGET_DIR chooses where it is built (default: target/static).
set -eu

usage() {
    sed -n 's/^# \{0,1\}//; 2,6p' "$0" >&2
    exit 2
}

binary_only=no
if [ "${1-}" = --binary ]; then
    binary_only=yes
    shift
fi
[ $# -eq 1 ] || usage
out=$1

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)
# A directory of its own: other flags in the same one would rebuild everything, each time.
target_dir=${CARGO_TARGET_DIR:-$root/target/static}
case $(uname -m) in
    x86_64) triple=x86_64-unknown-linux-gnu arch=amd64 ;;
    aarch64) triple=aarch64-unknown-linux-gnu arch=arm64 ;;
    *) echo "image.sh: no target known for $(uname -m)" >&2; exit 1 ;;
esac

# --target keeps the flags away from build scripts and procedural macros, which cannot be static.
(cd "$root" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release \
    --package fake-engine --bin fake-engine --target "$triple" --target-dir "$target_dir")
program=$target_dir/$triple/release/fake-engine

if [ "$binary_only" = yes ]; then
    install -m 0755 "$program" "$out"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

mkdir -p "$work/root/usr/bin" "$work/root/app" "$work/root/tmp" "$work/image"
install -m 0755 "$program" "$work/root/usr/bin/fake-engine"
strip --strip-all "$work/root/usr/bin/fake-engine" 2>/dev/null || true
ln -s fake-engine "$work/root/usr/bin/vllm"
ln -s fake-engine "$work/root/usr/bin/llama-server"
ln -s ../usr/bin/fake-engine "$work/root/app/llama-server"
chmod 0755 "$work/root" "$work/root/usr" "$work/root/usr/bin" "$work/root/app"
chmod 1777 "$work/root/tmp"

archive() { # ARCHIVE DIRECTORY: the same input gives the same bytes
    tar --create --file "$1" --directory "$2" --format ustar --sort name \
        --mtime '@0' --owner 0 --group 0 --numeric-owner .
}

archive "$work/layer.tar" "$work/root"
layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
mv "$work/layer.tar" "$work/image/$layer.tar"

cat >"$work/config" <<JSON
{"architecture":"$arch","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Entrypoint":["/usr/bin/fake-engine"],"Env":["PATH=/usr/bin","HOME=/tmp"],"WorkingDir":"/","StopSignal":"SIGTERM","Labels":{"org.opencontainers.image.title":"fake-engine"}},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"tests/fake-engine/image.sh"}]}
JSON
config=$(sha256sum "$work/config" | cut -d ' ' -f 1)
mv "$work/config" "$work/image/$config.json"
cat >"$work/image/manifest.json" <<JSON
[{"Config":"$config.json","RepoTags":["localhost/hostler/fake-engine:latest"],"Layers":["$layer.tar"]}]
JSON

# Written beside the goal and renamed: an interrupted build leaves no half archive.
(cd "$work/image" && tar --create --file "$work/out.tar" --format ustar --sort name --mtime '@0' \
    --owner 0 --group 0 --numeric-owner -- *)
# Several may make it at once, each its own copy.
mkdir -p "$(dirname -- "$out")"
mv "$work/out.tar" "$out.part.$$"
mv "$out.part.$$" "$out"
echo "$out"
