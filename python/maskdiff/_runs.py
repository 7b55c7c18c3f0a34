"""Runs on disk as a table."""
from __future__ import annotations

import os
import typing

from . import _program

if typing.TYPE_CHECKING:
    import pandas


def records(folder: str | os.PathLike = ".") -> list[dict]:
    """The runs in a folder and below, one dict each."""
    return _program.answer("runs", "list", os.fspath(folder))


def runs(folder: str | os.PathLike = ".") -> pandas.DataFrame:
    """The runs in a folder and below as a pandas frame: one row each, with method, data, step, results and state."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("maskdiff.runs gives a pandas frame: pip install pandas") from error
    return pandas.DataFrame(records(folder))
