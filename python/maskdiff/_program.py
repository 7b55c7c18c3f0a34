"""The `maskdiff` program: where it is, and how it starts."""
from __future__ import annotations

import concurrent.futures
import ctypes
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import sysconfig


class Error(RuntimeError):
    """What maskdiff answered, in its words."""


def _runs(file: pathlib.Path) -> bool:
    return file.is_file() and os.access(file, os.X_OK)


def _is_ours(file: pathlib.Path) -> bool:
    """Whether a file is the command that this package has installed, which starts the program and is not it."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(4096)
    except OSError:
        return False
    return start.startswith(b"#!") and b"maskdiff._program" in start


def _places() -> list[pathlib.Path]:
    """Where the program may be where MASKDIFF_BINARY names none, the first one first."""
    package = pathlib.Path(__file__).resolve().parent
    folders = [pathlib.Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders.append(package / "bin")
    # The package in a clone, or installed from one (`setup.py` notes which).
    noted = package / "clone.txt"
    clone = pathlib.Path(noted.read_text().strip()) if noted.is_file() else package.parents[1]
    if (clone / "Cargo.toml").is_file():
        folders += [clone / "target" / profile for profile in ("release", "debug")]
    return [folder / "maskdiff" for folder in folders]


def binary() -> str:
    """The program: the one that `MASKDIFF_BINARY` names, else the first one on the PATH, in the package's folder `bin`, in the clone's `target`.

    The command that `pip install` makes is not taken for the program.
    """
    named = os.environ.get("MASKDIFF_BINARY")
    if named:
        if not _runs(pathlib.Path(named)):
            raise Error(f"MASKDIFF_BINARY names `{named}`, which is no program: name the file `maskdiff` that `cargo build --release` made")
        return named
    for place in _places():
        if _runs(place) and not _is_ours(place):
            return str(place)
    raise Error("there is no program `maskdiff` on the PATH: build it (`cargo build --release` in a clone of maskdiff), and add its folder "
                "to the PATH or name the file in MASKDIFF_BINARY")


def _python() -> dict[str, str]:
    """Names this interpreter to the program, for components written in Python: where it is one that can serve, and the user names no other."""
    try:
        fits = importlib.metadata.version("torch").startswith("2.11.") and sysconfig.get_config_var("Py_ENABLE_SHARED")
    except importlib.metadata.PackageNotFoundError:
        fits = False
    return {"MASKDIFF_PYTHON": sys.executable} if fits and sys.executable and "MASKDIFF_PYTHON" not in os.environ else {}


def main() -> None:
    """The command `maskdiff`: becomes the program."""
    try:
        found = binary()
    except Error as error:
        print(f"maskdiff: {error}", file=sys.stderr)
        sys.exit(5)
    environment = {**{key: value for key, value in os.environ.items() if key != "MASKDIFF_BINARY"}, **_python()}
    os.execve(found, [found, *sys.argv[1:]], environment)


def _environment(**more: str) -> dict[str, str]:
    # `MASKDIFF_...` are settings of the program, and these are none of it.
    own = ("MASKDIFF_BINARY", "MASKDIFF_API_KEY")
    return {**{key: value for key, value in os.environ.items() if key not in own}, **_python(), **more}


def answer(*words: str) -> list[dict]:
    """The JSON lines of a command that ends."""
    done = subprocess.run([binary(), *words, "--format", "json"], capture_output=True, encoding="utf-8", check=False,
                          env=_environment())
    if done.returncode != 0:
        raise Error(done.stderr.strip() or f"maskdiff ended with code {done.returncode}")
    return [json.loads(line) for line in done.stdout.split("\n") if line.strip()]


_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def _with_parent() -> None:
    # A notebook that is killed leaves no server behind.
    if _prctl is not None:
        _prctl(1, signal.SIGTERM)


# The signal comes when the thread ends that has started the program: this one stays as long as Python does.
_starter = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="maskdiff")


def start(words: list[str], key: str) -> subprocess.Popen:
    """A command that stays; `key` is the one that its server wants."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    return _starter.submit(subprocess.Popen, [binary(), *words], preexec_fn=_with_parent, env=_environment(MASKDIFF_API_KEY=key),
                           **options).result()
