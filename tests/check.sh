#!/bin/bash
# All checks, in the order in which they fail fastest; `make check`. Ends with what was skipped, and why.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }
HOSTLER_SKIPPED=$(mktemp)
export HOSTLER_SKIPPED
trap 'rm -f "$HOSTLER_SKIPPED"' EXIT

step "prerequisites"
tests/host/prereqs.sh

step "format"
cargo fmt --all --check

step "clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings
cargo clippy --lib --bins --test traces --features otlp --locked -- -D warnings
cargo clippy --lib --profile test --features fuzzing --locked -- -D warnings

# With nextest, .config/nextest.toml bounds how many hosts run at once; without, the number of threads does.
host=(--test host --test end)
if cargo nextest --version >/dev/null 2>&1; then
  step "unit, tidy, configuration and API tests"
  cargo nextest run --workspace --locked -E 'not (binary(host) + binary(sim) + package(testhost))'
  cargo test --workspace --locked --doc --quiet
  step "traces: what the default build leaves out"
  cargo nextest run --features otlp --test traces --locked
  step "host tests"
  cargo nextest run --workspace --locked -E 'binary(host) + package(testhost)'
  step "traces on a host: what the default build leaves out"
  cargo nextest run --features otlp --test host --locked traces::
  ignored=$(cargo nextest list --workspace --locked --run-ignored only --message-format oneline 2>/dev/null)
else
  step "unit, tidy, configuration and API tests (cargo-nextest would be quicker)"
  mapfile -t others < <(cargo metadata --locked --no-deps --format-version 1 | python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    for target in package["targets"]:
        if target["kind"] == ["test"] and target["name"] not in ("host", "end", "sim", "traces"):
            print("--test", target["name"], sep="\n")')
  cargo test --workspace --locked --lib --bins "${others[@]}"
  cargo test --workspace --locked --doc --quiet
  step "traces: what the default build leaves out"
  cargo test --features otlp --test traces --locked
  step "host tests"
  cargo test --workspace --locked "${host[@]}" -- --test-threads 2
  step "traces on a host: what the default build leaves out"
  cargo test --features otlp --test host --locked traces::
  ignored=$(cargo test --workspace --locked --lib --bins --tests -- --list --ignored 2>/dev/null | grep ': test$' || true)
fi

step "fuzzing: a minute for all parsers together"
tests/fuzz.sh 15

step "simulation: the core through 20,000 histories"
tests/sim.sh

step "the podman adapter against the host's podman"
tests/host/podman-contract.sh
# Those were run just now; the last is a process that other tests start.
ignored=$(grep -v -e '::podman ' -e 'contract::' -e 'faults::' -e 'rig::hold_a_claim' <<<"$ignored" || true)

step "skipped"
{ cat "$HOSTLER_SKIPPED"; sed '/^$/d' <<<"$ignored"; } | sort | tee "$HOSTLER_SKIPPED.all"
echo "$(wc -l <"$HOSTLER_SKIPPED.all") skipped (each says above why, or needs what this machine lacks: a GPU)"
rm -f "$HOSTLER_SKIPPED.all"
