#!/bin/bash
# Bytes that nobody meant, for every parser that foreign bytes reach: tests/fuzz.sh [SECONDS for each target, default 60]
#
# libFuzzer drives the unit tests named `fuzz_…`, two at a time. What it learns is kept in the cache and is where the next run goes on;
# an input that fails is named and belongs into tests/fuzz/corpus/TARGET, with the mend.
set -euo pipefail
cd "$(dirname "$0")/.."
export HOSTLER_FUZZ_SECONDS=${1:-60}
export HOSTLER_FUZZ_DIR=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}/fuzz
mkdir -p "$HOSTLER_FUZZ_DIR"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

export RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/rustc.sh
tests=$(cargo test --no-run --lib --locked --features fuzzing --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == "hostler": print(built["executable"])')

attempt() {
  if "$tests" --exact "$1" --nocapture --test-threads 1 >"$logs/$1" 2>&1; then
    # What is not guided would pass as well.
    grep -q '^INFO: Loaded 1 modules .* inline 8-bit counters' "$logs/$1" || { echo "$1: no counters in $tests"; return 1; }
    echo "$1: $(sed -n 's/^stat::number_of_executed_units: *//p' "$logs/$1") inputs, of which" \
      "$(sed -n 's/^stat::new_units_added: *//p' "$logs/$1") reached something new"
  else
    tail -40 "$logs/$1"
    echo "$1 FAILED; the input is below $HOSTLER_FUZZ_DIR/failed"
    return 1
  fi
}
export tests logs
export -f attempt
targets=$("$tests" --list 2>/dev/null | sed -n '/fuzz_/s/: test$//p')
[ -n "$targets" ] || { echo "fuzz: no targets in $tests" >&2; exit 1; }
xargs -P 2 -I{} bash -c 'attempt {}' <<<"$targets"
