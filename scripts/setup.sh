#!/usr/bin/env bash
# Makes this checkout ready for plain `cargo build`, `cargo run` and `cargo test`. Safe to run again; quick when done.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() { echo "setup: $1" >&2; exit 1; }

command -v cargo >/dev/null || stop "cargo is missing: install Rust (https://rustup.rs), then run this again"
command -v c++ >/dev/null || stop "no C++ compiler: install one (Debian and Ubuntu: apt-get install g++), then run this again"
command -v cc >/dev/null || stop "no C compiler: install one (Debian and Ubuntu: apt-get install gcc), then run this again"
python=$(command -v python3 || true)
[ -n "$python" ] || stop "python3 is missing: install Python 3.9 or newer, then run this again"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' \
  || stop "$("$python" --version) is too old: install Python 3.9 or newer, then run this again"
"$python" scripts/libtorch.py
