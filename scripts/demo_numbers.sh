#!/usr/bin/env bash
# What the demo reaches at full length: guided texts have their label, a student needs fewer steps than its teacher. Prints the figures of docs/sampling.md
# and docs/methods.md, and fails where one is missed. About half an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --workspace --locked
cargo test --workspace --locked --test demo_numbers -- --ignored --nocapture --test-threads=1
