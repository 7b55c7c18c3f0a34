#!/usr/bin/env bash
# build.sh FILE.so: the pretended CUDA device over the libtorch of this checkout (scripts/setup.sh). Does nothing where the file is
# newer than its sources.
set -euo pipefail
out=$(realpath -m "$1")
cd "$(dirname "$0")"
torch=../../.libtorch/torch native=../../plugin-api/native/cpp kernels=../../plugin-api/native/kernels
[ -e "$out" ] && [ -z "$(find . $kernels $native/cuda_table.h $native/shim.h "$torch/lib/" -maxdepth 1 -newer "$out" -type f -print -quit)" ] && exit 0
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
each=()
for name in device operators half record; do
  c++ -std=c++20 -O0 -fPIC -Wall -c -isystem $torch/include -isystem $torch/include/torch/csrc/api/include -isystem $native -I $native \
    "$name.cpp" -o "$made/$name.o" &
  each+=($!)
done
c++ -std=c++20 -O2 -fPIC -Wall -c "$kernels/as_cpp.cpp" -o "$made/kernels.o" &
each+=($!)
for one in "${each[@]}"; do wait "$one"; done
c++ -shared "$made"/*.o -o "$made/out.so" -L $torch/lib -ltorch_cpu -lc10 -ldl
# Others may be loading it.
mv "$made/out.so" "$out"
