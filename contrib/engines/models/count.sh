#!/bin/bash
# The test model count-512.gguf: a real Llama, 2.9 MB, that greedily says exactly " 1 2 3 ... 512". Prints its path.
# Arguments, if any, go to make_count_gguf.py (--n, --pad-mib for load time and memory, --ctx, --layers).
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

args=("${@:---n=512}")
KEY_EXTRA="${args[*]}"
maker=$here/models/make_count_gguf.py
out=$cache/count-$(key_of "$maker").gguf
cached "$out"
python=$(bash "$here/python.sh")
"$python" "$maker" "$work/count.gguf" "${args[@]}" >&2
finish "$work/count.gguf" "$out"
