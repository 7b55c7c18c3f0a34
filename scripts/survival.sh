#!/usr/bin/env bash
# Attacks runs as machines do, at full length (an hour or more): bursts of signals, kills, and a fault in each file call of a
# short run. `cargo test` takes a sample of it. The numbers may be set: SURVIVAL_BURSTS=10 scripts/survival.sh
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
# Bursts of signals, for one process and for two ranks each; and kills.
export SURVIVAL_BURSTS=${SURVIVAL_BURSTS:-100}
export SURVIVAL_KILLS=${SURVIVAL_KILLS:-100}
# Runs with a file call that fails: more than three for each call takes all of them, with each kind of fault.
export SURVIVAL_CALLS=${SURVIVAL_CALLS:-1000000}
# Runs in which no thread starts from the first, the second, ... on.
export SURVIVAL_THREADS=${SURVIVAL_THREADS:-40}

cargo build --workspace --locked
cargo test --workspace --locked --test survival -- --nocapture "$@"
