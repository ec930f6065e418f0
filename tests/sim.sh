#!/bin/bash
# The simulation alone: `make sim` (SEEDS=20000), `make sim SEEDS=n`, `SEED=n make sim` for one history, line by line.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${SEED:-}" ]; then export SEEDS=${SEEDS:-20000}; else unset SEEDS; fi
# Its own profile: optimised, yet with every assertion and overflow check.
exec cargo test --locked -p hostler --profile sim --test sim -- --nocapture no_seed
