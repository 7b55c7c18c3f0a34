#!/usr/bin/env bash
# Sets up what is missing and runs every check: format, clippy, all tests, the docs.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }

scripts/setup.sh
scripts/setup.sh --python || say "no Python with torch: the tests of components in Python are skipped"

scripts/setup.sh --s3 || say "no S3 server: the tests of object stores are skipped"

scripts/setup.sh --hub || say "no client of the hub: the tests with it are skipped"

scripts/setup.sh --track || say "no clients of W&B and TensorBoard: the tests with them are skipped"

scripts/setup.sh --screens || say "no browser or no tmux: the tests that look at pages and at the terminal are skipped"

scripts/setup.sh --slurm || say "no Slurm: the tests of jobs are skipped"

say "format"
cargo fmt --all --check
say "clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings
say "build: the host and the plugins"
cargo build --workspace --locked
say "tests"
# libtorch has one random generator a process: .cargo/config.toml runs the tests of a binary one at a time. Their tensors
# are small: a second thread only waits for the first.
export OMP_NUM_THREADS=1
cargo test --workspace --locked
say "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
say "all passed"
