# Shared by the scripts of this directory; to be sourced. Each script prints the path of what it made, or found made, as its
# last line of output and says what it does on standard error.
#
# Cache: ${HOSTLER_CACHE:-${XDG_CACHE_HOME:-~/.cache}/hostler}/engines/NAME-KEY, where KEY is a hash of the recipe, so that a changed
# recipe is made anew and a finished artefact is never modified.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}/engines
mkdir -p "$cache"

say() { echo "engines: $*" >&2; }
die() { say "$*"; exit 1; }

key_of() { # FILE ...: the key of a recipe: the given files, and anything in $KEY_EXTRA
  { cat "$@"; printf '%s' "${KEY_EXTRA:-}"; } | sha256sum | cut -c1-16
}

# cached PATH: ends the script with PATH where it exists; else takes the lock under which the caller makes it.
cached() {
  if [ -e "$1" ]; then echo "$1"; exit 0; fi
  exec 9>"$1.lock"
  flock 9
  if [ -e "$1" ]; then echo "$1"; exit 0; fi
  work=$(mktemp -d "$cache/.work.XXXXXX")
  trap 'rm -rf "$work"' EXIT
}

# finish FILE PATH: moves a finished file to its cached path, and prints that.
finish() {
  sync -f "$1"
  mv -T "$1" "$2"
  rm -f "$2.lock"
  say "made $2 ($(du -h "$2" | cut -f1))"
  echo "$2"
}

# The mirror that this machine's apt uses, or DEBIAN_MIRROR.
debian_mirror() {
  local mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -m1 '/debian/$' || true)}
  [ -n "$mirror" ] || die "no Debian mirror in this machine's apt configuration: set DEBIAN_MIRROR"
  echo "$mirror"
}
