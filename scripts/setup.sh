#!/usr/bin/env bash
# Makes this checkout ready for plain `cargo build`, `cargo run` and `cargo test`. Safe to run again; quick when done.
# With --python it also makes the environment for components written in Python, with transformers and peft for the tests of exports: about 3 GB of download, 5 GB on disk, in
# the user's cache; with --s3 the small one of a server of the S3 protocol, for the tests; with --hub that of the official
# client of the Hugging Face Hub, for the tests, and of `datasets`, for the benches; with --track that of the official clients of
# W&B and TensorBoard, for the tests; with --serve that of the official client of OpenAI's API and of lm-eval, for the tests; with --notebooks that of nbclient,
# matplotlib, pandas and setuptools, for the notebooks of the docs and the wheel; with --screens a headless Chromium, its driver and tmux, from the system's packages, for
# the tests of pages and of the terminal; with --slurm a Slurm from the system's packages, whose daemons the tests start for
# themselves; with --ccache ccache, so that scripts/test.sh compiles the same C++ once; with --original (after --python) what the original program imports, for
# scripts/bench.sh --original.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { echo "setup: $1" >&2; exit 1; }

case "${1:-}" in
  "" | --python | --s3 | --hub | --track | --serve | --notebooks | --screens | --slurm | --ccache | --original) ;;
  *) stop "there is no option $1: run scripts/setup.sh alone or with --python, --s3, --hub, --track, --serve, --notebooks, --screens, --slurm, --ccache or --original" ;;
esac

command -v cargo >/dev/null || stop "cargo is missing: install Rust (https://rustup.rs), then run this again"
command -v c++ >/dev/null || stop "no C++ compiler: install one (Debian and Ubuntu: apt-get install g++), then run this again"
command -v cc >/dev/null || stop "no C compiler: install one (Debian and Ubuntu: apt-get install gcc), then run this again"
python=$(command -v python3 || true)
[ -n "$python" ] || stop "python3 is missing: install Python 3.9 or newer, then run this again"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
  || stop "$("$python" --version) is too old: install Python 3.9 or newer, then run this again"
"$python" scripts/libtorch.py

# An environment in the user's cache: small OPTION NAME WHAT PACKAGES...
small() {
  local option=$1 env=${XDG_CACHE_HOME:-$HOME/.cache}/maskdiff/$2 what=$3
  shift 3
  [ -e "$env/ready" ] && return 0
  rm -rf "$env"
  mkdir -p "$(dirname "$env")"
  "$python" -m venv "$env" \
    || stop "python3 makes no environment: install its venv module (Debian and Ubuntu: apt-get install python3-venv)"
  # torch is that of `--python`, which is large: what is installed behind it finds it there.
  [ -z "${torch:-}" ] || [ -e "$(dirname "$env")/python-2.11.0/ready" ] \
    || stop "there is no Python with torch: run scripts/setup.sh --python, then scripts/setup.sh $option again"
  [ -z "${torch:-}" ] \
    || echo "$(dirname "$env")"/python-2.11.0/lib/python3*/site-packages >"$(echo "$env"/lib/python3*/site-packages)/torch.pth"
  "$env/bin/pip" install --quiet --no-cache-dir "$@" \
    || stop "pip could not install $*, for the reason above: mend it and run scripts/setup.sh $option again"
  # What names an older version of another package than it works with.
  [ -z "${alone:-}" ] || "$env/bin/pip" install --quiet --no-cache-dir --no-deps "$alone" \
    || stop "pip could not install $alone, for the reason above: mend it and run scripts/setup.sh $option again"
  touch "$env/ready"
  echo "setup: $what at $env"
}

slurm() {
  PATH=$PATH:/usr/sbin:/sbin
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null && return 0
  command -v apt-get >/dev/null || stop "put \`slurmctld\`, \`slurmd\` and \`sbatch\` on PATH"
  [ "$(id -u)" = 0 ] || stop "as root: apt-get install slurmctld slurmd slurm-client"
  # The packages start daemons of their own where nothing forbids it, and the tests want none of those.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
  fi
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client; } \
    >/dev/null || stop "apt-get could not install slurmctld, slurmd and slurm-client, for the reason above"
  echo "setup: $(slurmctld -V)"
}

screens() {
  command -v chromium >/dev/null && command -v chromedriver >/dev/null && command -v tmux >/dev/null && return 0
  command -v apt-get >/dev/null || stop "put \`chromium\`, \`chromedriver\` and \`tmux\` on PATH"
  [ "$(id -u)" = 0 ] || stop "as root: apt-get install chromium chromium-driver tmux"
  { apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver tmux; } >/dev/null \
    || stop "apt-get could not install chromium, chromium-driver and tmux, for the reason above"
  echo "setup: $(chromium --version)"
}

compiler_cache() {
  command -v ccache >/dev/null && return 0
  command -v apt-get >/dev/null || stop "put \`ccache\` on PATH"
  [ "$(id -u)" = 0 ] || stop "as root: apt-get install ccache"
  { apt-get update && apt-get install -y --no-install-recommends ccache; } >/dev/null \
    || stop "apt-get could not install ccache, for the reason above"
  echo "setup: $(ccache --version | head -1)"
}

case "${1:-}" in
  --ccache) compiler_cache ;;
  --screens) screens ;;
  --slurm) slurm ;;
  --s3) small --s3 moto-5.2.5 "the S3 server" 'moto[s3,server]==5.2.5' ;;
  --track) small --track track-1 "the official clients of W&B and TensorBoard" wandb==0.31.0 tensorboard==2.20.0 ;;
  --serve) small --serve serve-1 "the official client of OpenAI's API and lm-eval" openai==3.57.0 'lm_eval[api]==0.4.13' ;;
  --notebooks)
    torch=1 small --notebooks notebooks-1 "notebooks" nbclient==0.11.0 ipykernel==7.4.0 matplotlib==3.11.2 pandas==3.1.1 setuptools==84.2.1
    ;;
  --original)
    torch=1 small --original original-1 "what the original program imports" lightning==2.6.1 timm==1.0.24 torchvision==0.26.0 \
      torchmetrics==1.9.0 hydra-core==1.3.2 einops==0.8.2 datasets==5.2.0 rich==15.0.0 requests==2.34.2
    ;;
  --hub) alone=tokenizers==0.23.1 small --hub hub-2.4.0 "the hub's client" huggingface_hub==2.4.0 datasets==5.2.0 ;;
esac

[ "${1:-}" = "--python" ] || exit 0
env=${XDG_CACHE_HOME:-$HOME/.cache}/maskdiff/python-2.11.0
[ -e "$env/ready" ] && exit 0
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
  || stop "torch 2.11 needs Python 3.10 to 3.13, and python3 is $("$python" --version): put another one first on PATH"
"$python" -c 'import os, sys, sysconfig as s
names = [s.get_config_var("INSTSONAME") or "", "libpython%d.%d.so.1.0" % sys.version_info[:2]]
places = [s.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
sys.exit(not any(".so" in n and os.path.exists(os.path.join(p, n)) for n in names for p in places))' \
  || stop "python3 has no shared library (libpython): install it (Debian and Ubuntu: apt-get install libpython3-dev)"
mkdir -p "$(dirname "$env")"
free=$(df --output=avail -B1000000000 "$(dirname "$env")" | tail -1)
[ "$free" -ge 10 ] || stop "$(dirname "$env") has $free GB free and torch needs 10: free some space, or set XDG_CACHE_HOME"
rm -rf "$env"
"$python" -m venv "$env" \
  || stop "python3 makes no environment: install its venv module (Debian and Ubuntu: apt-get install python3-venv)"
echo "setup: fetching torch 2.11.0 for Python"
"$env/bin/pip" install --quiet --no-cache-dir torch==2.11.0 'numpy>=2,<3' transformers==5.0.0 peft==0.21.2 \
  || stop "pip could not install torch 2.11.0, for the reason above: mend it and run scripts/setup.sh --python again"
touch "$env/ready"
echo "setup: Python with torch 2.11.0 at $env"
