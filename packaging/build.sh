#!/bin/bash
# Builds the release binaries for packages, where `make build` puts them.
#
# By `cargo auditable`, so that each binary carries the list of its crates, which scanners know how to find; that is then compared with
# the bill of materials. The tool comes from crates.io, once, into ${HOSTLER_CACHE:-${XDG_CACHE_HOME:-~/.cache}/hostler}/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.7.7
tool=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}/tools/cargo-auditable-$version
if [ ! -x "$tool/bin/cargo-auditable" ]; then
  echo "build: installing cargo-auditable $version (once) ..." >&2
  cargo install --quiet --locked --root "$tool" --version "$version" cargo-auditable
fi
PATH=$tool/bin:$PATH cargo auditable build --release --locked
release=${CARGO_TARGET_DIR:-target}/release
packaging/sbom.py --compare "$release/hostlerd" "$release/hostler"
