"""maskdiff from Python: load a checkpoint, draw text, score text, see logits, read runs.

    import maskdiff
    import torch
    with maskdiff.load("first") as model:
        print(model.sample("Ben has a", n=2, seed=7))
        print(model.loglikelihood(["Ben has a hat."]))
        logits = model.logits(torch.tensor([model.encode("Ben has a")]), t=0.5)

The engine is the `maskdiff` program, which computes in a process of its own: a fault there is an exception here, the interpreter's lock is free
while it computes, and any torch may be in this process, or none. What crosses are texts and token ids, some kilobytes for each text, and
logits, as bytes that are read into the tensor's own memory: the copy costs little beside the network that makes them.
"""
from __future__ import annotations

import os

from ._model import Model, Text
from ._program import Error
from ._runs import runs

__all__ = ["Error", "Model", "Text", "load", "runs"]


def load(checkpoint: str | os.PathLike, *settings: str, trust: bool = False) -> Model:
    """A model of a run folder or checkpoint.

    `settings` are those of the command line, as in `"sampling.steps=64"`. `trust` lets the checkpoint's own Python files and plugins be used
    where this user has not named them before.
    """
    return Model(checkpoint, settings, trust)
