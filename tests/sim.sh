#!/bin/bash
# The simulation alone: `make sim` (SEEDS=20000), `make sim SEEDS=n`, `SEED=n make sim` for one history, line by line.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${SEED:-}" ]; then export SEEDS=${SEEDS:-20000}; else unset SEEDS; fi
# Only this package is optimised, with every assertion and overflow check; what it depends on stays as other tests built it.
exec cargo test --locked -p hostler --config 'profile.dev.package.hostler.opt-level=2' --test sim -- --nocapture ${SEED:+no_seed}
