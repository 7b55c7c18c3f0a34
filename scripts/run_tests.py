"""Builds the tests and runs them, two test programs at a time, and prints which tests took longest.

libtorch has one random generator per process, so the tests of one program run one at a time; most of them wait for a
started binary or use one thread, which leaves the second core to another program. Programs that start several processes
run last, beside each other: they wait for timeouts and for the scheduler most of the time. Called by scripts/test.sh;
with names it runs those programs only.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

# Several ranks, and a scheduler whose jobs ask for both cores. Each computes less than half of the time.
LAST = {"ranks", "slurm"}
# The longest begin first. `compatibility` finds in the target folder that it shares with `authors` what that one has built.
FIRST = ["authors", "survival", "tracking", "servers", "house", "compatibility", "strangers", "disk", "methods", "python",
         "guards", "maskdiff_sedd", "sweep", "hub", "corpora", "configuration", "maskdiff_remdm"]
RESULT = re.compile(r"^test result: .* (\d+) passed; (\d+) failed;")
DONE = re.compile(r"^test (?P<name>\S+)(?: - .*)? \.\.\. (?:.*)$")
printing = threading.Lock()
TOOLCHAIN = {}


def programs(names):
    """The test programs: (name, executable, folder of the package)."""
    command = ["cargo", "test", "--workspace", "--locked", "--no-run", "--message-format=json-render-diagnostics"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        sys.exit("the tests do not build, for the reason above")
    found = []
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message.get("executable"):
            continue
        if not message["profile"]["test"] or "bench" in message["target"]["kind"]:
            continue
        folder = pathlib.Path(message["manifest_path"]).parent
        name = message["target"]["name"]
        if not names or name in names:
            found.append((name, message["executable"], folder))
    order = {name: place for place, name in enumerate(FIRST)}
    return sorted(found, key=lambda program: order.get(program[0], len(order)))


def toolchain():
    """What `cargo test` tells its programs of itself, so that what they build is built by the same compiler."""
    try:
        named = subprocess.run(["rustup", "show", "active-toolchain"], capture_output=True, text=True, check=True)
        cargo = subprocess.run(["rustup", "which", "cargo"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"RUSTUP_TOOLCHAIN": named.stdout.split()[0], "CARGO": cargo.stdout.strip()}


def run(program):
    """Runs one program; returns its name, whether it passed, the seconds of each test, and (passed, failed).

    It prints the processor time of the program and of what it started: far below the wall time, the program waits.
    """
    name, executable, folder = program
    environment = {**os.environ, **TOOLCHAIN, "RUST_TEST_THREADS": "1", "CARGO_MANIFEST_DIR": str(folder)}
    begun = last = time.monotonic()
    child = subprocess.Popen([executable], cwd=folder, env=environment, text=True, errors="replace",
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines, tests = [], []
    for line in child.stdout:
        lines.append(line)
        if done := DONE.match(line):
            now = time.monotonic()
            tests.append((now - last, f"{name}: {done['name']}"))
            last = now
    _, status, used = os.wait4(child.pid, 0)
    code = child.returncode = os.waitstatus_to_exitcode(status)
    seconds, processor = time.monotonic() - begun, used.ru_utime + used.ru_stime
    with printing:
        print(f"\n     Running {name} ({seconds:.0f} s, {processor:.0f} s of a processor)\n{''.join(lines)}", end="", flush=True)
        if code:
            print(f"{name} failed with code {code}", flush=True)
    counts = [tuple(map(int, found.groups())) for line in lines if (found := RESULT.match(line))]
    # A program that ended without a result has failed at least once.
    counts = counts or [(0, 1)]
    return name, code == 0, tests, counts


def main():
    TOOLCHAIN.update(toolchain())
    found = programs(set(sys.argv[1:]))
    if not found:
        sys.exit("no test program was found")
    ended = []
    for last in (False, True):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            ended += pool.map(run, [program for program in found if (program[0] in LAST) == last])
    tests = sorted((test for _, _, of_program, _ in ended for test in of_program), reverse=True)
    print("\n== the ten slowest tests")
    for seconds, name in tests[:10]:
        print(f"{seconds:7.1f} s  {name}")
    passed, failures = (sum(count[i] for *_, counts in ended for count in counts) for i in (0, 1))
    print(f"\n{passed} passed, {failures} failed", flush=True)
    failed = [name for name, passed, *_ in ended if not passed]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if not tests:
        sys.exit("no test was run")


main()
