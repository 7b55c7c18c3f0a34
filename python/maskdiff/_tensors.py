"""Tensors to and from the server: ids as JSON, numbers as bytes."""
from __future__ import annotations

import ctypes
import typing

if typing.TYPE_CHECKING:
    import torch

# Bytes that one answer has at most; more texts are asked for in several.
_ANSWER = 1 << 28


def load_torch():
    """The module torch, or an error that says what it is needed for."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("logits are torch tensors: pip install torch") from error
    return torch


def texts_and_times(x, t) -> tuple[list, list, bool]:
    """Ids [B, L] and times [B] as lists, and whether one text alone was given."""
    torch = load_torch()
    x = torch.as_tensor(x)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"`x` is {x.dtype}, expected token ids, whole numbers")
    if x.dim() not in (1, 2) or x.numel() == 0:
        raise ValueError(f"`x` is {list(x.shape)}, expected [L] or [B, L] token ids")
    single = x.dim() == 1
    x = x[None] if single else x
    t = torch.as_tensor(t, dtype=torch.float64).flatten()
    if t.numel() not in (1, len(x)):
        raise ValueError(f"`t` has {t.numel()} times for {len(x)} texts: give one for all, or one for each")
    # JSON has no word for the others.
    if not bool(t.isfinite().all()):
        raise ValueError(f"`t` is {t.tolist()}, expected times from 0 (data) to 1 (noise)")
    return x.tolist(), t.expand(len(x)).tolist(), single


def gather(open_answer, ids: list, t: list, vocabulary: int, **more) -> "torch.Tensor":
    """The numbers [B, L, V] of all texts, written where they stay: `open_answer(body)` is an answer with their bytes."""
    torch = load_torch()
    each, made = max(1, _ANSWER // (4 * len(ids[0]) * vocabulary)), None
    for first in range(0, len(ids), each):
        part = slice(first, first + each)
        with open_answer({"tokens": ids[part], "t": t[part], **more}) as answer:
            size = [int(n) for n in answer.headers["x-maskdiff-shape"].split(",")]
            if made is None:
                kind = {"f32": torch.float32, "f64": torch.float64}[answer.headers["x-maskdiff-dtype"]]
                made = torch.empty([len(ids), *size[1:]], dtype=kind)
            _fill(made[part], answer)
    return made


def _fill(tensor, answer) -> None:
    """Reads an answer into a tensor's memory."""
    bytes_ = tensor.numel() * tensor.element_size()
    view = memoryview((ctypes.c_char * bytes_).from_address(tensor.data_ptr())).cast("B")
    while view:
        read = answer.readinto(view)
        if not read:
            raise ConnectionError("the answer broke off")
        view = view[read:]
