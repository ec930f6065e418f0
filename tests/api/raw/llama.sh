#!/bin/bash
# llama-server as a program of this machine, unpacked from the image of contrib/engines. Prints the directory that is its root.
source "$(dirname "${BASH_SOURCE[0]}")/../../../contrib/engines/lib.sh"

archive=$("$here/llama-server/build.sh")
out=$cache/root-$(basename "$archive" .tar)
cached "$out"
tar xf "$archive" -C "$work"
mkdir "$work/root"
for layer in "$work"/*.tar; do tar xf "$layer" -C "$work/root"; done
finish "$work/root" "$out"
