#!/usr/bin/env bash
# Runs the benches in one go and writes their figures and ratios as JSON: scripts/bench.sh [FILE]
# Takes about thirty minutes on two cores. Quiet the machine first.
# With --original CHECKOUT [NAME ...] it runs the original program (a checkout of kuleshov-group/mdlm) beside the release build instead, in float32
# and then in bf16, and prints tables: about twenty minutes. scripts/original/compare.py lists the names.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --original ]; then
  checkout=${2:?scripts/bench.sh --original CHECKOUT}
  [ -f "$checkout/diffusion.py" ] || { echo "bench: $checkout is no checkout of kuleshov-group/mdlm: it has no diffusion.py" >&2; exit 2; }
  shift 2
  for option in "" --python --original; do scripts/setup.sh $option; done
  cargo build --workspace --release --locked
  python=${XDG_CACHE_HOME:-$HOME/.cache}/maskdiff/original-1/bin/python
  compare() { python3 scripts/original/compare.py target/release/maskdiff "$python" "$checkout" "$@"; }
  compare "$@" --json target/original.json
  compare "$@" --json target/original-bf16.json --bf16
  exit
fi

out=${1:-target/bench.json}

scripts/setup.sh
scripts/setup.sh --hub || echo "no client of the hub: nothing beside our tokenizing"
cargo build --workspace --release --locked
cargo bench -p maskdiff-tests --locked --bench memory --bench head --bench uniform --bench speed --bench training --bench data \
  --bench evaluation --bench tracking --bench blocks --bench serve --bench large | tee "$out.txt"
scripts/bench_json.py "$out.txt" >"$out"
rm "$out.txt"
cat "$out"
