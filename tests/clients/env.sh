#!/bin/bash
# Installs the real clients in the cache, once for each list of versions; prints where.
#
#   env.sh python     a virtual environment by requirements.txt
#   env.sh node       node_modules by package.json
#   env.sh cyclonedx  a virtual environment by ../packages/requirements.txt: who judges the bill of materials
#
# Cache: ${HOSTLER_CACHE:-${XDG_CACHE_HOME:-~/.cache}/hostler}/clients/<kind>-<key>. Status 75: it cannot be installed here.
set -euo pipefail
cd "$(dirname "$0")"

kind=${1:?python, node or cyclonedx}
case $kind in
  python) list=requirements.txt tool=python3 ;;
  node) list=package.json tool=npm ;;
  cyclonedx) list=../packages/requirements.txt tool=python3 ;;
  *) echo "env.sh: python, node or cyclonedx, not $kind" >&2; exit 64 ;;
esac
command -v "$tool" >/dev/null || { echo "$tool is missing" >&2; exit 75; }

cache=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}/clients
dir=$cache/$kind-$(sha256sum <"$list" | cut -c1-16)
mkdir -p "$cache"
exec 9>"$cache/.lock-$kind"
flock 9
if [ -e "$dir/.whole" ]; then echo "$dir"; exit 0; fi
rm -rf "$dir"
mkdir -p "$dir"
cp "$list" "$dir"
case $kind in
  python | cyclonedx) python3 -m venv "$dir" && "$dir/bin/pip" -q --disable-pip-version-check install -r "$list" ;;
  node) (cd "$dir" && npm install --silent --no-audit --no-fund --ignore-scripts) ;;
esac >"$cache/$kind.log" 2>&1 || { echo "$list could not be installed: $(tail -n 1 "$cache/$kind.log")" >&2; exit 75; }
: >"$dir/.whole"
echo "$dir"
