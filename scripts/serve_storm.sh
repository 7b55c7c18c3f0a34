#!/usr/bin/env bash
# Attacks `maskdiff serve` with wrong, slow and broken-off requests for HOURS (8 where nothing is said): tests/src/storm.rs says which.
# Usage: scripts/serve_storm.sh [HOURS]
set -euo pipefail
cd "$(dirname "$0")/.."

hours=${1:-8}
export MASKDIFF_TEST_STORM_S=$((hours * 3600)) RUST_TEST_THREADS=1 OMP_NUM_THREADS=1
cargo build --workspace --locked
cargo test --workspace --locked --test serve -- --nocapture it_survives_a_storm
