#!/usr/bin/env bash
# Runs each fuzz target for so many seconds (600 by default): scripts/fuzz.sh [SECONDS]
# Needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}

scripts/setup.sh
export LD_LIBRARY_PATH=$PWD/.libtorch/torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
work=target/fuzz
for target in header detokenizers pickle; do
  mkdir -p "$work/corpus/$target" "$work/artifacts"
  # Seeds: whole blocks, and the texts of the golden cases.
  case $target in
    header) [ -d tests/fuzz/seeds ] && cp -n tests/fuzz/seeds/* "$work/corpus/$target/" || true ;;
    pickle)
      python3 - "$work/corpus/$target/data.pkl" <<'END'
import sys, zipfile
archive = zipfile.ZipFile('tests/golden/k_lightning_ckpt/last.ckpt')
open(sys.argv[1], 'wb').write(archive.read('archive/data.pkl'))
END
      ;;
    detokenizers) cp -n tests/golden/h_detokenizers/detokenizers.json "$work/corpus/$target/" || true ;;
  esac
  # No sanitizer: the code is safe Rust, and libtorch is not built for one.
  cargo +nightly fuzz run --fuzz-dir tests/fuzz --target-dir "$work" --sanitizer none "$target" "$work/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=65536 -timeout=10 -artifact_prefix="$work/artifacts/"
done
