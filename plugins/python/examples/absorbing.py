"""The absorbing process in Python: noise turns tokens into the mask, for good; a place to start from.

    maskdiff train diffusion=python:absorbing.py:Absorbing
    maskdiff plugins check absorbing.py:Absorbing --kind process
"""
import torch


class Absorbing:
    """Shapes: x0 [B, L] tokens, alpha [B] float64 in [0, 1], u [B, L] float64 in [0, 1), xt [N], p [N, V]."""

    # A promise: a token that noise takes becomes the mask, and nothing else.
    mask = True

    def __init__(self, context):
        self.mask_id, self.device = context.mask_id, context.device

    def prior(self, batch, length):
        """A draw at t = 1: [B, L]."""
        return torch.full([batch, length], self.mask_id, device=self.device)

    def corrupt(self, x0, alpha, u):
        """A draw of q(xt | x0), a function of the uniform numbers."""
        return x0.masked_fill(u < (1 - alpha)[:, None], self.mask_id)

    def posterior(self, xt, alpha_t, alpha_s, p):
        """q(xs | xt, x0 ~ p) for s <= t: [N, V], rows sum to 1."""
        stay = 1.0 if alpha_t == alpha_s else (1 - alpha_s) / (1 - alpha_t)
        opened = p * (1 - stay)
        opened[:, self.mask_id] = stay
        kept = torch.nn.functional.one_hot(xt, p.shape[1]).to(p.dtype)
        return torch.where((xt == self.mask_id)[:, None], opened, kept)

    def prior_kl(self, x0, alpha_1):
        """What is left of the data at t = 1, in nats per token: [B, L] float64."""
        left = float('inf') if alpha_1 > 0 else 0.0
        return torch.full(x0.shape, left, dtype=torch.float64, device=x0.device)

    def mixing(self, alpha):
        """The noise in q_t = alpha x0 + noise: on every token, and on the mask beyond that; [B] float64 each."""
        return torch.zeros_like(alpha), 1 - alpha

    def arrival(self, alpha):
        """Where tokens that noise takes arrive, per unit of sigma; sums to 1 over the vocabulary."""
        return torch.zeros_like(alpha), torch.ones_like(alpha)
