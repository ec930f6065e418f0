#!/bin/bash
# Builds the Debian package: deb.sh BINDIR OUTDIR; prints its path.
#
# By debhelper, because it is the distribution's own: it finds the libraries that the binaries need, and its checks are what lintian
# expects; and because it takes `packaging/install.sh` as it is, so that there is one list of files for deb, rpm and `make install`.
# The same tree gives the same bytes: times come from SOURCE_DATE_EPOCH, by default the commit's. HOSTLER_DEB_COMPRESSION: options of
# dpkg-deb, for packages that are only tried.
set -euo pipefail
bindir=$(realpath "$1") outdir=$(realpath "$2")
source=$(realpath "$(dirname "$0")/..")
command -v dh >/dev/null || { echo "deb: debhelper is missing: apt-get install debhelper" >&2; exit 1; }

version=${HOSTLER_VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$source/Cargo.toml" | head -n 1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$source" log -1 --format=%ct)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/hostler-$version
mkdir "$tree"
cp -r "$source/packaging/debian" "$tree/debian"
# The purge script has to outlive the package, so it is part of the script that dpkg keeps.
sed -e '/^@PURGE@$/{r '"$source/packaging/purge.sh"'
d}' "$tree/debian/postrm.in" >"$tree/debian/postrm"
rm "$tree/debian/postrm.in"
printf 'hostler (%s) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- Hostler maintainers <hostler@example.org>  %s\n' \
  "$version" "$(date --utc --rfc-email --date "@$SOURCE_DATE_EPOCH")" >"$tree/debian/changelog"
"$source/packaging/sbom.py" >"$work/hostler.cdx.json"
export HOSTLER_SBOM=$work/hostler.cdx.json HOSTLER_SOURCE=$source HOSTLER_BINDIR=$bindir HOSTLER_DEB_COMPRESSION=${HOSTLER_DEB_COMPRESSION:--Zxz}
(cd "$tree" && umask 022 && dpkg-buildpackage --build=binary --unsigned-changes --no-check-builddeps) >"$work/log" 2>&1 ||
  { tail -n 40 "$work/log" >&2; exit 1; }
mv "$work"/hostler_*.deb "$outdir"
ls "$outdir/hostler_${version}_"*.deb
