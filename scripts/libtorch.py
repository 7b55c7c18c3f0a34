"""Finds libtorch 2.11 or fetches it, and links it as `.libtorch/torch` in the checkout.

Order: the folder named by LIBTORCH, an importable torch 2.11, a copy fetched before into the
user's cache, the wheel from the package index (pinned by hash in libtorch-cpu.txt). Cargo reads the
constant path `.libtorch/torch` (.cargo/config.toml), so a change of libtorch rebuilds nothing by itself.

Run by scripts/setup.sh; needs Python 3.9 and pip, nothing else.
"""

import ctypes
import glob
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.11"
WHEEL = "2.11.0"
ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = ROOT / ".libtorch" / "torch"
NEEDED = ("libtorch_cpu.so", "libc10.so", "libtorch.so")
# Download, unpacked libraries and headers, in bytes: what must be free before we start.
ROOM_CPU, ROOM_CUDA = 1_700_000_000, 9_000_000_000


def stop(what):
    """One sentence and what to do, then exit."""
    sys.exit(f"setup: {what}")


def version_of(torch):
    """The version in the headers of a libtorch folder, or None when it is not one."""
    header = torch / "include" / "torch" / "headeronly" / "version.h"
    if not header.is_file() or not all((torch / "lib" / name).is_file() for name in NEEDED):
        return None
    found = re.search(r'#define TORCH_VERSION "?([0-9.]+)', header.read_text())
    if found:
        return found.group(1)
    parts = re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header.read_text())
    return ".".join(parts) if parts else None


def fits(torch):
    found = version_of(torch)
    return found is not None and found.startswith(VERSION + ".")


def from_environment():
    """The folder LIBTORCH names; a wrong one is an error, not a reason to look elsewhere."""
    named = os.environ.get("LIBTORCH")
    if not named:
        return None
    torch = pathlib.Path(named).resolve()
    if not fits(torch):
        stop(f"LIBTORCH={named} holds {version_of(torch) or 'no libtorch'}, expected {VERSION}: "
             "point it at a libtorch 2.11 (the folder with include/ and lib/) or unset it")
    return torch


def from_python():
    """The torch package of this Python, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    torch = pathlib.Path(list(spec.submodule_search_locations)[0])
    return torch if fits(torch) else None


def has_gpu():
    wanted = os.environ.get("MASKDIFF_SETUP_CUDA")
    if wanted is not None:
        return wanted not in ("", "0")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def cache_folder(kind):
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "maskdiff" / f"libtorch-{WHEEL}-{kind}"


def check_room(folder, room):
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < room:
        stop(f"{folder} has {free / 1e9:.1f} GB free and libtorch needs {room / 1e9:.1f} GB: "
             "free some space, or set XDG_CACHE_HOME to a folder on a larger disk")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run([*command[:3], "--version"], capture_output=True).returncode:
        stop("this Python has no pip, which fetches libtorch: install it "
             "(Debian and Ubuntu: apt-get install python3-pip), or set LIBTORCH to a libtorch 2.11")
    print("setup: fetching libtorch " + WHEEL, flush=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        stop(f"pip could not fetch torch {WHEEL} ({' '.join(last)}): check the network and try again, "
             "or set LIBTORCH to a libtorch 2.11 that is on this machine")


def fetch_cpu(folder):
    """The libraries and headers a CPU machine needs, from the pinned wheels, into `folder`/torch."""
    check_room(folder.parent, ROOM_CPU)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        machine = platform.machine()
        pip("download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
            "--no-cache-dir", "--python-version", "3.12", "--implementation", "cp",
            *(f"--platform=manylinux_2_{n}_{machine}" for n in (28, 27, 25, 17)),
            f"--platform=manylinux2014_{machine}", "--dest", scratch,
            "--requirement", str(ROOT / "scripts" / "libtorch-cpu.txt"))
        new = pathlib.Path(scratch) / "new"
        for wheel in glob.glob(f"{scratch}/*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    take(archive, member, new / "torch")
        stub = new / "torch" / "lib" / "libtorch.so"
        # The real libtorch.so only pulls in libtorch_cuda.so, which is not here; linkers want the name.
        subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-Wl,-soname,libtorch.so",
                        "-o", str(stub)], check=True)
        if not fits(new / "torch"):
            stop(f"the wheel of torch {WHEEL} lacks a file that is needed: report this as a bug")
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    return folder / "torch"


def take(archive, member, torch):
    """Unpacks one file of a wheel when the CPU set needs it."""
    name = pathlib.PurePosixPath(member)
    libraries = ("libtorch_cpu.so", "libc10.so", "libgomp", "libcudart.so", "libcupti.so")
    if member.startswith("torch/include/"):
        target = torch / name.relative_to("torch")
    elif name.name.startswith(libraries) and name.parent.name == "lib":
        target = torch / "lib" / name.name
    else:
        return
    if member.endswith("/"):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def fetch_cuda(folder):
    """The whole package with its CUDA libraries, so that one build serves CPU and GPU."""
    check_room(folder.parent, ROOM_CUDA)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pip("install", "--quiet", "--no-cache-dir", "--target", f"{scratch}/new", f"torch=={WHEEL}")
        if folder.exists():
            shutil.rmtree(folder)
        pathlib.Path(scratch, "new").rename(folder)
    return folder / "torch"


def find():
    found = from_environment() or from_python()
    if found:
        return found
    kind = "cuda" if has_gpu() else "cpu"
    folder = cache_folder(kind)
    if fits(folder / "torch"):
        return folder / "torch"
    return fetch_cuda(folder) if kind == "cuda" else fetch_cpu(folder)


def main():
    torch = find()
    LINK.parent.mkdir(exist_ok=True)
    if LINK.is_symlink() and pathlib.Path(os.readlink(LINK)) == torch:
        return
    if LINK.is_symlink() or LINK.exists():
        LINK.unlink()
    LINK.symlink_to(torch)
    print(f"setup: libtorch {version_of(torch)} at {torch}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        stop(f"{error}: check the disk and the rights of that folder, then run scripts/setup.sh again")
