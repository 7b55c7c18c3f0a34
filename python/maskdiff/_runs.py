"""Runs on disk as a table."""
import os

from . import _program


def records(folder=".") -> list:
    """The runs in a folder and below, one dict each."""
    return _program.answer("runs", "list", os.fspath(folder))


def runs(folder="."):
    """The runs in a folder and below as a pandas frame: one row each, with method, data, step, results and state."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("maskdiff.runs gives a pandas frame: pip install pandas") from error
    return pandas.DataFrame(records(folder))
