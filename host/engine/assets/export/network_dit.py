"""The diffusion transformer of a folder that maskdiff exported, for `transformers` with `trust_remote_code=True`.

Pre-norm blocks whose shift, scale and gate come from the noise level (adaLN), rotary positions, layer norms without a bias.
Parameters have the names of the published weights. Shape letters: B batch, L length, D hidden size, C conditioning size.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

FEATURES = 256


class NoiseEmbedding(nn.Module):
    """sigma [B] -> [B, C]."""

    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma):
        half = FEATURES // 2
        steps = torch.arange(half, dtype=torch.float32, device=sigma.device)
        angle = sigma[:, None].float() * torch.exp(-math.log(10_000) * steps / half)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.mlp(features.to(self.mlp[0].weight.dtype))


class Embedding(nn.Module):
    """Tokens [B, L] -> [B, L, D]."""

    def __init__(self, tokens, width):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(tokens, width))

    def forward(self, tokens):
        return F.embedding(tokens, self.embedding)


class Norm(nn.Module):
    """A layer norm with a weight alone, shifted and scaled by the noise level."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x, shift, scale):
        return F.layer_norm(x, self.weight.shape, self.weight) * (1 + scale) + shift


class Rotary(nn.Module):
    """The angle of each position, [L, K / 2]."""

    def __init__(self, width):
        super().__init__()
        even = torch.arange(0, width, 2, dtype=torch.float32)
        self.register_buffer("inv_freq", torch.exp(-math.log(10_000) * even / width))

    def forward(self, length):
        positions = torch.arange(length, dtype=torch.float32, device=self.inv_freq.device)
        return positions[:, None] * self.inv_freq.float()


def rotated(x, angle):
    """Turns the halves of [B, H, L, K] against each other."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, width, conditioning, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Linear(conditioning, 6 * width)

    def attend(self, h, angle):
        batch, length, width = h.shape
        qkv = self.attn_qkv(h).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = rotated(qkv[0], angle), rotated(qkv[1], angle), qkv[2]
        out = F.scaled_dot_product_attention(q, k, v)
        return self.attn_out(out.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x, c, angle):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        dropped = lambda h: F.dropout(h, self.dropout, self.training)
        x = x + gate1 * dropped(self.attend(self.norm1(x, shift1, scale1), angle))
        return x + gate2 * dropped(self.mlp(self.norm2(x, shift2, scale2)))


class Output(nn.Module):
    """[B, L, D] -> logits [B, L, V]."""

    def __init__(self, tokens, width, conditioning):
        super().__init__()
        self.norm_final = Norm(width)
        self.linear = nn.Linear(width, tokens)
        self.adaLN_modulation = nn.Linear(conditioning, 2 * width)

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x, shift, scale))


class Network(nn.Module):
    """Tokens [B, L] at the noise levels sigma [B] -> logits [B, L, V]."""

    def __init__(self, tokens, width, conditioning, blocks, heads, dropout):
        super().__init__()
        self.vocab_embed = Embedding(tokens, width)
        self.sigma_map = NoiseEmbedding(conditioning)
        self.rotary_emb = Rotary(width // heads)
        self.blocks = nn.ModuleList(Block(width, conditioning, heads, dropout) for _ in range(blocks))
        self.output_layer = Output(tokens, width, conditioning)

    def forward(self, tokens, sigma):
        x, c = self.vocab_embed(tokens), F.silu(self.sigma_map(sigma))
        angle = self.rotary_emb(tokens.shape[1])
        for block in self.blocks:
            x = block(x, c, angle)
        return self.output_layer(x, c)
