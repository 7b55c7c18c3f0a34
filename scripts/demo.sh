#!/usr/bin/env bash
# Sets up what is missing, builds, and trains a small masked diffusion model on stories from a grammar: about three
# minutes on two cores after the build. Further arguments go to `maskdiff train`, as in: scripts/demo.sh trainer.max_steps=100
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
cargo build --workspace --locked
target/debug/maskdiff train experiment=demo "$@"
