#!/bin/bash
# A Python with uvicorn, the server below vLLM, in a virtual environment of the cache. Prints its interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/../../../contrib/engines/lib.sh"

venv=$cache/uvicorn-0.51
exec 9>"$venv.lock"
flock 9
if [ ! -e "$venv/.complete" ]; then
  say "making a Python environment with uvicorn ..."
  rm -rf "$venv"
  python3 -m venv "$venv" >&2 || die "python3 -m venv failed: run tests/host/prereqs.sh"
  "$venv/bin/pip" install --quiet --disable-pip-version-check uvicorn httptools h11 >&2
  touch "$venv/.complete"
fi
echo "$venv/bin/python"
