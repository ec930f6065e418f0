#!/bin/bash
# image.sh MODEL.gguf [NAME]: an image with nothing but /models/NAME.gguf, localhost/hostler/model-NAME:latest, to be mounted
# read-only into an engine's container. Models then travel through podman's own registry machinery. Prints the archive's path.
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

model=${1:?usage: image.sh MODEL.gguf [NAME]}
name=${2:-$(basename "$model" .gguf | sed 's/-[0-9a-f]\{16\}$//')}
KEY_EXTRA="$name $(sha256sum <"$model")"
out=$cache/model-$name-$(key_of "$here/oci-archive.py").tar
cached "$out"
mkdir -p "$work/rootfs/models"
cp "$model" "$work/rootfs/models/$name.gguf"
chmod 0644 "$work/rootfs/models/$name.gguf"
python3 "$here/oci-archive.py" "$work/rootfs" "$work/image.tar" --name "localhost/hostler/model-$name:latest" \
  --label "org.opencontainers.image.title=$name"
finish "$work/image.tar" "$out"
