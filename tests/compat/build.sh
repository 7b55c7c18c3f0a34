#!/usr/bin/env bash
# Builds the plugin that stays: tests/compat/plugin-api-1.0.0.so.gz, run once when a version of plugin-api is released.
# Later hosts must load it, so it is not built again.
set -euo pipefail
cd "$(dirname "$0")/first"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
root=$(cd ../../.. && pwd)
libtorch=$(readlink -f "$root/.libtorch/torch")
# No path of the machine that built it.
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$home=/cargo --remap-path-prefix=$root=/maskdiff"
export CXXFLAGS="-ffile-prefix-map=$libtorch=/libtorch -ffile-prefix-map=$home=/cargo -ffile-prefix-map=$root=/maskdiff"
export LIBTORCH="$libtorch"
cp "$root/Cargo.lock" .
cargo build --release --lib --target-dir "$out"
gzip -9 -n -c "$out/release/libmaskdiff_first.so" >../plugin-api-1.0.0.so.gz
rm Cargo.lock
ls -l ../plugin-api-1.0.0.so.gz
