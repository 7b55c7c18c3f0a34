#!/usr/bin/env bash
# What needs an NVIDIA GPU, in one archive that goes where there is one.
#
#   scripts/gpu.sh bundle [FOLDER]   builds FOLDER (target/gpu-bundle) and FOLDER.tar.xz: program, plugins, configs, tests, golden numbers
#   scripts/gpu.sh pack FOLDER       makes the archive of such a folder again
#   scripts/gpu.sh first             all of it in at most 8 minutes, and a table: see gpu/first.sh
#   scripts/gpu.sh check             runs the tests on the GPU of this machine
#   scripts/gpu.sh bench             prints the table of speeds
#
# FOLDER needs no Rust, only a torch 2.11 with CUDA (python3's, or the one that MASKDIFF_TORCH names); in it this script is
# ./gpu.sh. In the repository `first`, `check` and `bench` make the folder first.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

stop() { echo "gpu: $1" >&2; exit "${2:-1}"; }

bundle() {
  cd "$here/.."
  local folder test elsewhere
  folder=$(realpath -m "${1:-target/gpu-bundle}")
  scripts/setup.sh
  cargo build --workspace --release --locked
  test=$(cargo test -p maskdiff-tests --test gpu --release --locked --no-run --message-format=json | python3 -c '
import json, sys
made = [json.loads(line) for line in sys.stdin if line.startswith("{")]
print(next(m["executable"] for m in made if m.get("executable") and m["target"]["name"] == "gpu"))')
  # The bundle that was made before.
  [ ! -f "$folder/bin/maskdiff" ] || rm -r "$folder"
  # Also runs the program of the new folder once; the script of that launch is of no use to anybody.
  elsewhere=$(mktemp -d)
  (cd "$elsewhere" && "$here/../target/release/maskdiff" -q launch local "--package=$folder" -- plugins list >/dev/null)
  rm -r "$elsewhere"
  mkdir -p "$folder/bin/deps"
  # Without the build's own libtorch in its run path, as the program of the folder is.
  python3 - "$test" "$folder/bin/deps/gpu" <<'PY'
import re, sys
program = open(sys.argv[1], 'rb').read()
cut = lambda found: found[1] + b'\0' * len(found[2])
open(sys.argv[2], 'wb').write(re.sub(rb'(\$ORIGIN/\.\./libtorch/torch/lib)(:/[^\0]*)', cut, program))
PY
  chmod +x "$folder/bin/deps/gpu"
  cp -r tests/golden "$folder/golden"
  cp scripts/gpu.sh scripts/gpu_time.py "$folder"
  cp -r scripts/gpu "$folder/gpu"
  pack "$folder"
}

# FOLDER -> FOLDER.tar.xz, which must be small enough to travel.
pack() {
  local folder archive bytes
  folder=$(realpath -m "$1") archive=$(realpath -m "$1").tar.xz
  [ -e "$folder/bin/maskdiff" ] || stop "\`$folder\` is no folder of \`bundle\`"
  # Symbols are for debuggers; without them the folder is a third as large.
  strip "$folder"/bin/*.so "$folder/bin/maskdiff" "$folder/bin/deps/gpu"
  tar -C "$(dirname "$folder")" --sort=name --owner=0 --group=0 -c "$(basename "$folder")" | xz -6 -T0 >"$archive.part"
  mv "$archive.part" "$archive"
  bytes=$(stat -c %s "$archive")
  (cd "$folder" && du -sm -- bin configs golden 2>/dev/null | sed 's/^/gpu: MiB of the folder: /')
  echo "gpu: $archive, $(((bytes + 1048575) / 1048576)) MiB"
  [ "$bytes" -lt $((40 << 20)) ] || stop "the archive should stay under 40 MiB"
}

# The tests, over the torch that the folder finds; for LIMIT seconds where that is set.
tests() {
  MASKDIFF_PROGRAM=deps/gpu MASKDIFF_TEST_DEVICE=cuda MASKDIFF_GOLDEN=$here/golden \
    timeout -k 5 "${LIMIT:-0}" "$here/maskdiff" --test-threads=1 "$@"
}

has_gpu() {
  python3 -c 'import ctypes; cuda = ctypes.CDLL("libcuda.so.1"); n = ctypes.c_int()
assert cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(n)) == 0 and n.value' 2>/dev/null
}

need_gpu() {
  command -v python3 >/dev/null || stop "python3 is missing"
  has_gpu && return 0
  echo "gpu: no NVIDIA GPU here, so none of these was run:"
  tests --list "$@" | sed -n 's/: test$//p' | sed 's/^/  not run: /'
  exit 1
}

# A process for each test: a fault of the card, or a graph that could not be recorded, spoils the process that met it. None stops the
# others; each has a limit, and a line with its result and the first words of what went wrong.
check() {
  need_gpu --skip bench
  nvidia-smi -L || true
  local names name rc began log failed=0 all=0
  log=$(mktemp)
  # On a line of its own: tests that do not start end the script here, with their reason.
  names=$(tests --list --skip bench | sed -n 's/: test$//p')
  for name in $names; do
    began=$SECONDS rc=0 all=$((all + 1))
    LIMIT=${MASKDIFF_GPU_LIMIT:-150} tests --exact "$name" --nocapture >"$log" 2>&1 || rc=$?
    if [ "$rc" = 0 ]; then
      printf '%5ds ok      %s\n' $((SECONDS - began)) "$name"
    else
      failed=$((failed + 1))
      printf '%5ds FAILED  %s (%s): %s\n' $((SECONDS - began)) "$name" "$rc" \
        "$(grep -m1 -aE -A1 'panicked at|Error|error:|undefined symbol|cannot open' "$log" | tr '\n' ' ' | cut -c1-240)"
    fi
  done
  rm -f "$log"
  echo "gpu: $((all - failed)) of $all passed"
  [ "$failed" = 0 ] && [ "$all" -gt 0 ]
}

bench() {
  need_gpu --ignored
  echo "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1), $(date +%F)"
  echo
  echo "| what | speed | memory at most | of the peak |"
  echo "|---|---|---|---|"
  local name
  for name in fp32 original bf16-32 bf16-64 bf16-64-plain bf16-pure-64 bf16-128 sampling sampling-64; do
    MASKDIFF_GPU_BENCH=$name tests --ignored --exact bench --nocapture | sed -n 's/^test bench [.]* //; /^|/p' || echo "| $name: failed | | | |"
  done
}

case "${1:-}" in
  bundle) bundle "${2:-}" ;;
  pack) pack "${2:?the folder}" ;;
  first | check | bench)
    if [ ! -e "$here/bin/maskdiff" ]; then
      bundle
      exec target/gpu-bundle/gpu.sh "$1"
    fi
    case $1 in
      first) exec "$here/gpu/first.sh" ;;
      *) "$1" ;;
    esac
    ;;
  *) stop "say what: bundle [FOLDER], pack FOLDER, first, check, or bench" 2 ;;
esac
