"""The `maskdiff` program: where it is, and how it starts."""
import concurrent.futures
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


def _environment(**more):
    # `MASKDIFF_...` are settings of the program, and these are none of it.
    own = ("MASKDIFF_BINARY", "MASKDIFF_API_KEY")
    return {**{key: value for key, value in os.environ.items() if key not in own}, **more}


def answer(*words: str) -> list:
    """The JSON lines of a command that ends."""
    done = subprocess.run([binary(), *words, "--format", "json"], capture_output=True, encoding="utf-8", check=False,
                          env=_environment())
    if done.returncode != 0:
        raise Error(done.stderr.strip() or f"maskdiff ended with code {done.returncode}")
    return [json.loads(line) for line in done.stdout.split("\n") if line.strip()]


_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def _with_parent():
    # A notebook that is killed leaves no server behind.
    if _prctl is not None:
        _prctl(1, signal.SIGTERM)


# The signal comes when the thread ends that has started the program: this one stays as long as Python does.
_starter = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="maskdiff")


def start(words, key) -> subprocess.Popen:
    """A command that stays; `key` is the one that its server wants."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8", "errors": "replace"}
    return _starter.submit(subprocess.Popen, [binary(), *words], preexec_fn=_with_parent, env=_environment(MASKDIFF_API_KEY=key),
                           **options).result()
