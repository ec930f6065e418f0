#!/bin/bash
# Builds the RPM package: rpm.sh BINDIR OUTDIR; prints its path.
#
# By rpmbuild, for the reasons of deb.sh. The same tree gives the same bytes: times come from SOURCE_DATE_EPOCH, by default the commit's.
# HOSTLER_RPM_COMPRESSION: rpm's payload format, for packages that are only tried.
set -euo pipefail
bindir=$(realpath "$1") outdir=$(realpath "$2")
source=$(realpath "$(dirname "$0")/..")
command -v rpmbuild >/dev/null || { echo "rpm: rpmbuild is missing: apt-get install rpm, or dnf install rpm-build" >&2; exit 1; }

version=${HOSTLER_VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$source/Cargo.toml" | head -n 1)}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$source" log -1 --format=%ct)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

"$source/packaging/sbom.py" >"$work/hostler.cdx.json"
export HOSTLER_SBOM=$work/hostler.cdx.json
# What the files are is asked of the one who puts them there.
sh "$source/packaging/install.sh" "$bindir" "$work/stage" /usr /etc
(cd "$work/stage" && find . -type f | sed -e 's#^\.##' -e '/LICENSE-/d' -e 's#^\(/usr/share/man/.*\)$#\1.gz#' \
  -e 's#^\(/usr/share/\(doc\|man\)/.*\)$#%doc \1#' -e 's#^\(/etc/.*\)$#%config(noreplace) \1#' | sort) >"$work/files"
sed -e "s#@VERSION@#$version#g" -e "s#@SOURCE@#$source#g" -e "s#@BINDIR@#$bindir#g" -e "s#@FILES@#$work/files#g" \
  -e "s#@DATE@#$(LC_ALL=C date --utc --date "@$SOURCE_DATE_EPOCH" '+%a %b %d %Y')#g" \
  "$source/packaging/rpm/hostler.spec.in" >"$work/hostler.spec"
rpmbuild -bb --define "_topdir $work/top" --define "_binary_payload ${HOSTLER_RPM_COMPRESSION:-w19.zstdio}" --define "_rpmdir $work/out" "$work/hostler.spec" >"$work/log" 2>&1 ||
  { tail -n 40 "$work/log" >&2; exit 1; }
package=$(echo "$work"/out/*/hostler-"$version"-1.*.rpm)
mv "$package" "$outdir"
echo "$outdir/$(basename "$package")"
