"""A small network in Python, and a place to start from.

    maskdiff train backbone=python:mean.py:Mean model.hidden_size=64
    maskdiff plugins check mean.py:Mean --kind backbone
"""
import torch
from torch import nn


class Mean(nn.Module):
    """Every position sees the mean of all. Options are the arguments after the context: `model.hidden_size=64`."""

    def __init__(self, context, hidden_size=64, dropout=0.1):
        super().__init__()
        # context: vocab_size, mask_id, length, time_conditioning, kind, device. Device and type are set afterwards.
        self.embed = nn.Embedding(context.vocab_size, hidden_size)
        self.level = nn.Linear(1, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size))
        self.drop = nn.Dropout(dropout)
        # A linear map of this name at the end of `forward` is fused with the loss.
        self.head = nn.Linear(hidden_size, context.vocab_size)

    def forward(self, x, sigma):
        """x [B, L] tokens, sigma [B] float64 noise levels (zeros without time_conditioning) -> logits [B, L, V]."""
        h = self.embed(x)
        h = h + h.mean(1, keepdim=True) + self.level(sigma[:, None].to(h.dtype))[:, None]
        return self.head(h + self.drop(self.mlp(self.norm(h))))
