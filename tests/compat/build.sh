#!/usr/bin/env bash
# Builds the plugin that stays: tests/compat/plugin-api-VERSION.so.gz, run once when a version of plugin-api is released.
# It has a component of each kind, as the scaffold writes them at that time. Later hosts must load it, so it is not built
# again. usage: tests/compat/build.sh VERSION
set -euo pipefail
version=${1:?usage: tests/compat/build.sh VERSION}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
fill() {
  sed "s/{{component}}/first_$1/g; s/{{Type}}/First${1^}/g; s/{{crate}}/maskdiff-first/; \
    s|{{api}}|{ path = \"$root/plugin-api\" }|" "$2"
}
for kind in backbone noise parameterization process sampler; do
  fill "$kind" "$root/host/templates/plugin/$kind.rs" | grep -v '^export_plugin!' >"$work/src/$kind.rs"
  echo "mod $kind;" >>"$work/src/lib.rs"
done
echo 'maskdiff_plugin_api::export_plugin!();' >>"$work/src/lib.rs"
fill first "$root/host/templates/plugin/Cargo.toml.in" >"$work/Cargo.toml"
cp "$root/Cargo.lock" "$work"
# No path of the machine that built it.
libtorch=$(readlink -f "$root/.libtorch/torch")
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="--remap-path-prefix=$home=/cargo --remap-path-prefix=$root=/maskdiff --remap-path-prefix=$work=/first"
export CXXFLAGS="-ffile-prefix-map=$libtorch=/libtorch -ffile-prefix-map=$home=/cargo -ffile-prefix-map=$root=/maskdiff"
export LIBTORCH="$libtorch"
(cd "$work" && cargo build --release --lib --target-dir "$work/target")
gzip -9 -n -c "$work/target/release/libmaskdiff_first.so" >"$root/tests/compat/plugin-api-$version.so.gz"
