#!/bin/bash
# A Python with what the model makers need (gguf, numpy), in a virtual environment of the cache. Prints its interpreter.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

venv=$cache/python-$(key_of "$here/requirements.txt")
exec 9>"$venv.lock"
flock 9
if [ ! -e "$venv/.complete" ]; then
  say "making a Python environment with gguf and numpy ..."
  rm -rf "$venv"
  # A virtual environment cannot be renamed, so a marker says that it is whole.
  python3 -m venv "$venv" >&2 || die "python3 -m venv failed: run tests/host/prereqs.sh"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
  touch "$venv/.complete"
fi
echo "$venv/bin/python"
