#!/usr/bin/env bash
# What the demo reaches at full length: guided texts have their label, texts without guidance have the labels of the data. Prints the figures of
# docs/sampling.md, and fails where one is missed. About ten minutes on two cores. DEMO_RUNS=FOLDER keeps the run there, and takes one that is there.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --workspace --locked
cargo test --workspace --locked --test demo_numbers -- --ignored --nocapture --test-threads=1
