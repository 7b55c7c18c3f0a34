#!/usr/bin/env bash
# Compares the samples of samplers in steps (`walk_contract` of the testkit) with the exact laws of their walks, with TIMES (10 by default)
# as many samples as `cargo test` draws.
# Usage: scripts/laws.sh [TIMES]
set -euo pipefail
cd "$(dirname "$0")/.."

export MASKDIFF_TEST_LAWS=${1:-10} RUST_TEST_THREADS=1 OMP_NUM_THREADS=1
scripts/setup.sh
cargo test --workspace --lib --locked -- samples_have_the_law_of_the_walk
