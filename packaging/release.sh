#!/bin/bash
# Makes a release: release.sh VERSION [--dry-run] [--skip-check] [--packages DIR]; `make release VERSION=x.y.z`.
#
# In this order: looks whether it may; writes the version into Cargo.toml and Cargo.lock, and the changelog's "Unreleased" under it;
# runs `make check`; commits; builds deb, rpm and the source archive from that commit; writes SHA256SUMS; tags. The tag comes last, so
# a tag has its artefacts. It pushes nothing. What fails on the way puts the branch back to where it was.
#
#   --dry-run       looks, prints what it would do, and changes nothing
#   --skip-check    without `make check`, for a commit that has just passed it
#   --packages DIR  takes deb and rpm of this version from DIR instead of building them
#
# HOSTLER_RELEASE_BRANCH: the branch that releases are made on, "main" unless told. deb.sh and rpm.sh read the version in Cargo.toml, so
# it is written nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { echo "release: $*" >&2; exit 1; }
say() { echo "release: $*" >&2; }
usage() { sed -n '2s/^# *//p; 8,10s/^#//p' "$0" >&2; exit 2; }

version= dry= check=yes packages=
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=yes ;;
    --skip-check) check= ;;
    --packages) [ $# -gt 1 ] || usage; packages=$(realpath "$2"); shift ;;
    -*) usage ;;
    *) [ -z "$version" ] || usage; version=$1 ;;
  esac
  shift
done
[ -n "$version" ] || usage

# Whether the first of two versions is the greater one.
greater() { [ "$1" != "$2" ] && [ "$(printf '%s\n' "$1" "$2" | sort -V | tail -n 1)" = "$1" ]; }
# The lines of the changelog between "Unreleased" and the release before.
unreleased() { awk '/^## /{ on = /^## \[Unreleased\]$/; next } on' CHANGELOG.md; }

[[ $version =~ ^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$ ]] || die "$version is no version; write x.y.z"
branch=${HOSTLER_RELEASE_BRANCH:-main}
on=$(git symbolic-ref --quiet --short HEAD || echo "no branch")
[ "$on" = "$branch" ] || die "this is $on; releases are made on $branch (HOSTLER_RELEASE_BRANCH names another)"
[ -z "$(git status --porcelain)" ] || die "the tree has changes; commit or remove them: git status"
git rev-parse --quiet --verify "refs/tags/v$version" >/dev/null && die "the tag v$version is there already"
latest=$(git tag --list 'v[0-9]*' | sed 's/^v//' | sort -V | tail -n 1)
[ -z "$latest" ] || greater "$version" "$latest" || die "$version is not greater than $latest, the last release"
current=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
! greater "$current" "$version" || die "$version is less than $current, the version in Cargo.toml"
grep -q '^## \[Unreleased\]$' CHANGELOG.md || die 'CHANGELOG.md has no "## [Unreleased]"'
# Not by a pipe: grep leaves at the first line, and what wrote the others fails then.
grep -q '^[*-] ' <<<"$(unreleased)" || die "CHANGELOG.md says nothing under Unreleased"

out=target/dist/hostler-$version
date=$(date --utc ${SOURCE_DATE_EPOCH:+--date "@$SOURCE_DATE_EPOCH"} +%F)
if [ -n "$dry" ]; then
  say "would release $version ($date) from $(git rev-parse --short HEAD) on $branch; the version now is $current"
  [ -z "$check" ] && say "would not run make check" || say "would run make check"
  say "would commit Cargo.toml, Cargo.lock and CHANGELOG.md, and tag v$version"
  say "would put into $out: deb and rpm ${packages:+from $packages, }the source archive, SHA256SUMS; with this changelog:"
  unreleased
  exit 0
fi

start=$(git rev-parse HEAD)
back() {
  git reset --quiet --hard "$start"
  rm -rf "$out"
  say "failed; $branch is where it was, and there is no tag"
}
trap back EXIT

sed -i "0,/^version = \".*\"$/s//version = \"$version\"/" Cargo.toml
awk -v version="$version" '/^\[\[package\]\]$/ { ours = 0 } /^name = "hostler"$/ { ours = 1 }
  ours && /^version = / { $0 = "version = \"" version "\"" } { print }' Cargo.lock >Cargo.lock.new
mv Cargo.lock.new Cargo.lock
sed -i -e "s/^## \[Unreleased\]$/## [Unreleased]\n\n## [$version] - $date/" -e 's/ Nothing has been released yet\.$//' CHANGELOG.md

if [ -n "$check" ]; then make check >&2; else say "make check was not run (--skip-check)"; fi

git commit --quiet --message "release: $version" -- Cargo.toml Cargo.lock CHANGELOG.md
rm -rf "$out"
mkdir -p "$out"
if [ -z "$packages" ]; then
  make --silent deb rpm >&2
  packages=target/dist
fi
# From the commit, whatever lies beside it.
git archive --format=tar.gz --prefix="hostler-$version/" --output "$out/hostler-$version.tar.gz" HEAD
for package in "$packages/hostler_${version}_"*.deb "$packages/hostler-$version-"*.rpm; do
  [ -f "$package" ] || die "there is no $package"
  cp "$package" "$out"
done
(cd "$out" && LC_ALL=C sha256sum -- *.deb *.rpm *.tar.gz >SHA256SUMS)
git tag --annotate --message "Hostler $version" "v$version"
trap - EXIT

say "made v$version; nothing was pushed. To publish: git push origin $branch v$version, and these files:"
ls -1 "$out"/*
