#!/usr/bin/env bash
# Runs the benches in one go and writes their figures and ratios as JSON: scripts/bench.sh [FILE]
# Takes about thirty minutes on two cores. Quiet the machine first.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/bench.json}

scripts/setup.sh
scripts/setup.sh --hub || echo "no client of the hub: nothing beside our tokenizing"
cargo build --workspace --release --locked
cargo bench -p maskdiff-tests --locked --bench memory --bench head --bench uniform --bench speed --bench training --bench data \
  --bench evaluation --bench tracking --bench blocks --bench serve --bench large | tee "$out.txt"
scripts/bench_json.py "$out.txt" >"$out"
rm "$out.txt"
cat "$out"
