"""`dit` in Python: the network of MDLM with the parameter names of its checkpoints, and a place to start from.

    maskdiff train backbone=python:dit.py:Dit model.hidden_size=256 model.n_heads=4
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


class Dit(nn.Module):
    """Shapes: B sequences, L tokens, D the width, C the width of the conditioning, H heads, V tokens with the mask."""

    # It reads classes (`backbone=python_label:dit.py:Dit`), and mixtures of tokens (`python_mixture:`); both by `python_full:`.
    label = mixture = True

    def __init__(self, context, hidden_size=256, cond_dim=128, n_blocks=4, n_heads=4, dropout=0.1):
        super().__init__()
        if hidden_size % (2 * n_heads):
            raise ValueError(f'`hidden_size` ({hidden_size}) must be an even multiple of `n_heads` ({n_heads})')
        # Without time conditioning all noise levels are 0: one conditioning speaks for all sequences.
        self.time_free = not context.time_conditioning
        self.vocab_embed = Embedding(context.vocab_size, hidden_size)
        self.sigma_map = NoiseLevel(cond_dim)
        self.cond_map = Classes(context.classes, cond_dim) if context.classes else None
        self.rotary_emb = Rotary(hidden_size // n_heads)
        self.blocks = nn.ModuleList(Block(hidden_size, cond_dim, n_heads, dropout) for _ in range(n_blocks))
        self.output_layer = Output(context.vocab_size, hidden_size, cond_dim)

    def condition(self, sigma, label=None):
        """sigma [B] or [B, L] float64, label [B] where there are classes -> [B, 1, C] or [B, L, C]."""
        made = F.silu(self.sigma_map(sigma.reshape(-1)[:1] if self.time_free else sigma))
        made = made if made.dim() == 3 else made[:, None]
        return made if label is None else made + F.silu(self.cond_map(label))[:, None]

    def hidden(self, x, sigma, label=None):
        """x [B, L] tokens, sigma [B] float64 -> [B, L, D], which enters the head."""
        condition = self.condition(sigma, label)
        rotation = self.rotary_emb(torch.arange(x.shape[1], device=x.device)[None])
        x = self.vocab_embed(x)
        for block in self.blocks:
            x, _ = block(x, condition, rotation)
        return self.output_layer(x, condition)

    def pass_(self, call):
        """A call in full, for blocks and caches (`backbone=python_pass:dit.py:Dit`): the state, and keys and values of each layer."""
        condition, rotation, seen = self.condition(call.sigma, call.label), self.rotary_emb(call.positions), call.seen()
        x, keys = call.embedded(self.vocab_embed.embedding), []
        for number, block in enumerate(self.blocks):
            if not call.wants_state() and number + 1 == len(self.blocks):
                return None, [*keys, *block.keys(x, condition, rotation)]
            x, own = block(x, condition, rotation, seen, call.layer(number))
            keys += own
        return self.output_layer(x, condition), keys

    @property
    def head(self):
        """A linear map: the host fuses it with the loss, and never holds the logits of all tokens."""
        return self.output_layer.linear

    def forward(self, x, sigma, label=None):
        """The logits [B, L, V]."""
        return self.head(self.hidden(x, sigma, label))


class Embedding(nn.Module):
    def __init__(self, tokens, width):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(tokens, width).uniform_(-1, 1) / math.sqrt(width))

    def forward(self, x):
        return F.embedding(x, self.embedding)


class NoiseLevel(nn.Module):
    """Cosines and sines of the noise level, then a small MLP: [B] -> [B, C], or [B, L] -> [B, L, C]."""

    def __init__(self, width, features=256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        half = features // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -math.log(10000.0) / half)
        self.register_buffer('frequencies', frequencies, persistent=False)

    def forward(self, sigma):
        angle = sigma.to(self.frequencies.dtype)[..., None] * self.frequencies
        features = torch.cat([angle.cos(), angle.sin()], -1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class Classes(nn.Module):
    """A row for each class, and the last one for none: [B] -> [B, C]."""

    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label):
        return self.embedding_table(label)


class Rotary(nn.Module):
    def __init__(self, width):
        super().__init__()
        even = torch.arange(0, width, 2, dtype=torch.float32)
        self.register_buffer('inv_freq', torch.exp(even / width * -math.log(10000.0)))

    def forward(self, positions):
        """positions [1, L] or [B, L] -> cos and sin, [1 or B, L, 1, 1, K/2]."""
        angle = positions.to(self.inv_freq.dtype)[..., None] * self.inv_freq
        return angle.cos()[:, :, None, None], angle.sin()[:, :, None, None]


def rotated(x, cos, sin):
    """x [B, L, 2, H, K]: the halves of each head are rotated against each other."""
    a, b = x.chunk(2, -1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Norm(nn.Module):
    """A layer norm with a weight and no bias, modulated."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x, shift, scale):
        size = self.weight.shape
        if shift.numel() > self.weight.numel():
            return F.layer_norm(x, size, self.weight) * (1 + scale) + shift
        # One modulation of all sequences is part of the norm, and costs nothing.
        weight, bias = self.weight * (1 + scale.flatten()), shift.flatten()
        return F.layer_norm(x, size, weight.to(x.dtype), bias.to(x.dtype))


def modulation(width, condition):
    """A linear map that is zero at first: each block begins as the identity."""
    made = nn.Linear(condition, width)
    nn.init.zeros_(made.weight)
    nn.init.zeros_(made.bias)
    return made


class Block(nn.Module):
    def __init__(self, width, condition, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate='tanh'), nn.Linear(4 * width, width))
        self.adaLN_modulation = modulation(6 * width, condition)

    def forward(self, x, condition, rotation, seen=None, past=None):
        """The state, and keys and values of these tokens."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, -1)
        q, k, v = self.project(self.norm1(x, shift1, scale1), rotation)
        h = self.attention(q, k, v, seen, past)
        x = torch.addcmul(x, gate1, F.dropout(h, self.dropout, self.training))
        h = self.mlp(self.norm2(x, shift2, scale2))
        return torch.addcmul(x, gate2, F.dropout(h, self.dropout, self.training)), (k, v)

    def keys(self, x, condition, rotation):
        """Keys and values alone."""
        shift, scale = self.adaLN_modulation(condition).chunk(6, -1)[:2]
        return self.project(self.norm1(x, shift, scale), rotation)[1:]

    def project(self, x, rotation):
        """Rotated queries and keys, and values, [B, H, L, K] each."""
        batch, length, _ = x.shape
        qk, v = self.attn_qkv(x).view(batch, length, 3, self.heads, -1).split([2, 1], 2)
        q, k = rotated(qk, *rotation).unbind(2)
        return [part.transpose(1, 2) for part in (q, k, v.squeeze(2))]

    def attention(self, q, k, v, seen, past):
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        out = F.scaled_dot_product_attention(q, k, v, seen)
        return self.attn_out(out.transpose(1, 2).flatten(2))


class Output(nn.Module):
    def __init__(self, tokens, width, condition):
        super().__init__()
        self.norm_final = Norm(width)
        self.linear = nn.Linear(width, tokens)
        # Zero at first: the first prediction is uniform.
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = modulation(2 * width, condition)

    def forward(self, x, condition):
        """The head itself is apart, see `Dit.head`."""
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        return self.norm_final(x, shift, scale)
