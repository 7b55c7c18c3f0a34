#!/usr/bin/env bash
# Sets up what is missing and runs every check: format, clippy, all tests, the docs. Says how long each stage took.
set -euo pipefail
cd "$(dirname "$0")/.."

stage="setup"
since=$SECONDS
times=""
close_stage() {
  times+=$(printf '%7d s  %s' $((SECONDS - since)) "$stage")$'\n'
  since=$SECONDS
}
say() {
  close_stage
  stage=$1
  printf '\n== %s\n' "$*"
}

optional() {
  scripts/setup.sh "--$1" || printf '\n== %s\n' "$2"
}
scripts/setup.sh
# The tests of plugin authors build plugins in target folders of their own, each with the C++ of torch-sys and of our shim.
# A compiler found by PATH is no input of cargo's: a plain `cargo build` afterwards builds nothing again.
optional ccache "no ccache: the tests of plugin authors compile the same C++ again"
if cache=$(command -v ccache); then
  mkdir -p target/ccache
  ln -sf "$cache" target/ccache/c++
  export PATH=$PWD/target/ccache:$PATH
  # Those tests set a cache folder of their own for maskdiff.
  export CCACHE_DIR=${CCACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ccache}
fi

# What some tests need is fetched while the compiler works.
others() {
  optional python "no Python with torch: the tests of components in Python are skipped"
  optional notebooks "no nbclient: the tests of notebooks and of the wheel are skipped"
  optional s3 "no S3 server: the tests of object stores are skipped"
  optional hub "no client of the hub: the tests with it are skipped"
  optional serve "no client of OpenAI's API and no lm-eval: the tests with them are skipped"
  optional track "no clients of W&B and TensorBoard: the tests with them are skipped"
  optional screens "no browser or no tmux: the tests that look at pages and at the terminal are skipped"
  optional slurm "no Slurm: the tests of jobs are skipped"
}
log=$(mktemp)
others >"$log" 2>&1 &
fetching=$!
# What is still fetched when a check fails ends too. A command that fails in here would be the status of the script.
trap 'kill "$fetching" 2>/dev/null || true; rm -f "$log"' EXIT

# Nothing is built twice here, and incremental compilation slows down a first build.
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}

say "format"
cargo fmt --all --check
say "clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings
# It runs on a GPU only, and is to compile without one.
cargo clippy --workspace --test gpu --locked -- -D warnings
say "build: the host and the plugins"
cargo build --workspace --locked
say "the rest of the setup"
wait "$fetching"
cat "$log"
say "docs"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
# The tensors of the tests are small: a second thread of libtorch only waits for the first.
export OMP_NUM_THREADS=1
say "tests in the docs"
cargo test --workspace --locked --doc
say "tests"
python3 scripts/run_tests.py
say "all passed"
printf '\n== the stages\n%s' "$times"
