#!/usr/bin/env bash
# The first command on a GPU: what is there, what works, how fast, where the time goes. It runs in the unpacked bundle (`./gpu.sh first`), for
# at most LIMIT seconds (470). No part stops the next: each has its own limit, and a line in the table with the first words of what went wrong.
# The table is $OUT/table.txt, and the logs of all parts are in $OUT/logs.tar.gz. docs/gpu.md says how to read both.
set -uo pipefail
here=$(cd "$(dirname "$0")/.." && pwd) OUT=${OUT:-$PWD/gpu-first} LIMIT=${LIMIT:-470}
mkdir -p "$OUT"
logs=$(mktemp -d) table=$OUT/table.txt
: >"$table"
BEGUN=$(date +%s)

left() { echo $((BEGUN + LIMIT - $(date +%s))); }
note() { printf '%4ds %s\n' $(($(date +%s) - BEGUN)) "$*" | tee -a "$table"; }
# At most N seconds, and no more than are left until P hundredths of the time are used.
most() {
  local stage=$(($2 * LIMIT / 100 - ($(date +%s) - BEGUN)))
  echo $(($1 < stage ? $1 : stage))
}
# The first line of a log that says what went wrong, with the one behind it.
why() { grep -m1 -aE -A1 'panicked at|fault of earlier work|off by|rror:|undefined symbol|cannot open|not found|signal' "$1" | tr '\n' ' ' | cut -c1-260; }

# part NAME SECONDS COMMAND...
part() {
  local name=$1 most=$2 begun rc=0
  begun=$(date +%s)
  shift 2
  if [ "$(left)" -le 5 ] || [ "$most" -le 0 ]; then
    note "not run  $name: its time is over"
    return 1
  fi
  [ "$most" -lt $(($(left) - 5)) ] || most=$(($(left) - 5))
  timeout -k 5 "$most" "$@" >"$logs/$name.log" 2>&1 || rc=$?
  case $rc in
    0) note "ok       $name $(($(date +%s) - begun))s" ;;
    124 | 137) note "TOO LONG $name ${most}s: $(why "$logs/$name.log")" ;;
    *) note "FAILED   $name $(($(date +%s) - begun))s ($rc): $(why "$logs/$name.log")" ;;
  esac
  return $rc
}
tests() { MASKDIFF_PROGRAM=deps/gpu MASKDIFF_TEST_DEVICE=cuda MASKDIFF_GOLDEN=$here/golden "$here/maskdiff" --test-threads=1 "$@"; }
export -f tests part note left why
export here OUT LIMIT BEGUN logs table

# What is there: without it no failure below can be read.
environment() {
  nvidia-smi
  uname -a
  ldd --version | head -1
  nproc
  free -g | head -2
  df -h /tmp | tail -1
  echo "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-} MASKDIFF_TORCH=${MASKDIFF_TORCH:-}"
  python3 -c 'import torch
print("torch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version(), torch.__file__)
print("GPU", torch.cuda.get_device_name(0), torch.cuda.get_device_capability(0))'
  local lib
  lib=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__) + "/lib")')
  for file in "$here"/bin/maskdiff "$here"/bin/deps/gpu "$here"/bin/libmaskdiffcuda.so; do
    echo "== $file"
    LD_LIBRARY_PATH=$lib ldd "$file" | grep -E 'not found|torch'
  done
}

# Each rung needs the one below: torch alone, our program, a first tensor through our loading of CUDA, kernels of ours.
ladder() {
  part torch 90 python3 -c 'import torch; x = torch.ones(4, device="cuda"); assert (x + x).sum().item() == 8'
  part program 60 "$here/maskdiff" plugins list
  if ! part first_tensor 90 bash -c 'tests --exact memory_in_use_is_counted'; then
    LD_DEBUG=libs,files timeout 60 bash -c 'tests --exact memory_in_use_is_counted' >"$logs/loader.log" 2>&1
  fi
  part kernels 120 bash -c 'tests --exact kernels_compute_what_libtorchs_operations_do --nocapture'
}

# Every test in a process of its own: a fault of the card, or a graph that could not be recorded, spoils the process that met it.
check() {
  local name
  for name in $(timeout 60 bash -c 'tests --list --skip bench' 2>"$logs/list.log" | sed -n 's/: test$//p'); do
    part "${name//::/.}" "$(most 100 "$1")" bash -c "tests --exact $name --nocapture"
  done
}

# Speeds, the one that matters first; and where the time of a step goes, kernel by kernel.
speeds() {
  local row
  for row in bf16-pure-64 bf16-64-plain sampling-64 sampling bf16-128 original fp32 bf16-32; do
    part "bench_$row" "$(most 75 "$1")" bash -c "MASKDIFF_GPU_BENCH=$row tests --ignored --exact bench --nocapture"
    sed -n 's/^test bench [.]* //; s/^| /      | /p' "$logs/bench_$row.log" 2>/dev/null | tee -a "$table"
  done
}

profile() {
  part profile 60 bash -c "MASKDIFF_GPU_BENCH=profile MASKDIFF_GPU_TRACE=$logs/trace.json tests --ignored --exact bench --nocapture" || return
  python3 - "$logs/trace.json" >"$OUT/kernels.txt" <<'PY'
import collections, json, sys
events = [e for e in json.load(open(sys.argv[1]))["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
by = collections.defaultdict(lambda: [0, 0.0])
for e in events:
    by[e["name"][:110]][0] += 1
    by[e["name"][:110]][1] += e["dur"] / 1e3
busy, span = sum(ms for _, ms in by.values()), (max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events)) / 1e3
print(f"three steps: {len(events)} kernels, busy {busy:.1f} of {span:.1f} ms")
for name, (n, ms) in sorted(by.items(), key=lambda item: -item[1][1])[:60]:
    print(f"{ms:9.3f} ms {100 * ms / busy:5.1f} % {n:5d} x {name}")
PY
  head -12 "$OUT/kernels.txt" | sed 's/^/      /' | tee -a "$table"
  gzip -9 <"$logs/trace.json" >"$OUT/trace.json.gz"
}

# A run as a user starts it, and texts from it.
user() {
  cd "$logs" &&
    "$here/maskdiff" train experiment=demo trainer.max_steps=60 trainer.precision=bf16 trainer.accelerator=cuda run.dir=run &&
    "$here/maskdiff" sample --checkpoint run sampling.cuda_graph=true loader.eval_batch_size=4
}
export -f user

part environment 60 bash -c "$(declare -f environment); environment"
grep -aE '^(torch|GPU) |not found' "$logs/environment.log" | sort -u | sed 's/^/      /' | tee -a "$table"
ladder
part user 60 bash -c user
part bench_first 75 bash -c 'MASKDIFF_GPU_BENCH=bf16-64 tests --ignored --exact bench --nocapture'
sed -n 's/^test bench [.]* //; s/^| /      | /p' "$logs/bench_first.log" 2>/dev/null | tee -a "$table"
profile
check 60
speeds 92
if command -v compute-sanitizer >/dev/null; then
  # With what is left: the memory checker over the kernels that we index ourselves.
  part sanitizer 90 bash -c 'MASKDIFF_PROGRAM=deps/gpu MASKDIFF_TEST_DEVICE=cuda MASKDIFF_GOLDEN=$here/golden compute-sanitizer --error-exitcode 9 --print-limit 5 "$here/maskdiff" --test-threads=1 --exact kernels_compute_what_libtorchs_operations_do'
fi

rm -rf "$logs/trace.json" "$logs/run"
tar czf "$OUT/logs.tar.gz" -C "$logs" .
rm -rf "$logs"
passed=$(grep -c ' ok  ' "$table") failed=$(grep -cE ' (FAILED|TOO LONG) ' "$table") skipped=$(grep -c ' not run ' "$table")
note "$passed ok, $failed failed, $skipped not run"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
