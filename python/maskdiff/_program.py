"""The `maskdiff` program: where it is, and how it starts."""
import ctypes
import json
import os
import shutil
import signal
import subprocess


class Error(RuntimeError):
    """What maskdiff answered, in its words."""


def binary() -> str:
    """The program that `MASKDIFF_BINARY` names, else the one on the PATH."""
    found = os.environ.get("MASKDIFF_BINARY") or shutil.which("maskdiff")
    if not found:
        raise Error("there is no program `maskdiff` on the PATH; MASKDIFF_BINARY names one elsewhere")
    return found


def _environment():
    # `MASKDIFF_...` are settings of the program, and this is none.
    return {key: value for key, value in os.environ.items() if key != "MASKDIFF_BINARY"}


def answer(*words: str) -> list:
    """The JSON lines of a command that ends."""
    done = subprocess.run([binary(), *words, "--format", "json"], capture_output=True, text=True, check=False,
                          env=_environment())
    if done.returncode != 0:
        raise Error(done.stderr.strip() or f"maskdiff ended with code {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def _with_parent():
    # A notebook that is killed leaves no server behind.
    if _prctl is not None:
        _prctl(1, signal.SIGTERM)


def start(words) -> subprocess.Popen:
    """A command that stays."""
    return subprocess.Popen([binary(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=_with_parent, env=_environment())
