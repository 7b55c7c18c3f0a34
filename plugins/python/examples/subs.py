"""`subs` in Python: what MDLM trains with, and a place to start from.

    maskdiff train parameterization=python:subs.py:Subs
    maskdiff plugins check subs.py:Subs --kind parameterization
"""
import torch


class Subs:
    """Shapes: x0, xt [B, L]; t, u [B] float64; rows [N], flat positions."""

    # An open token is certain to stay: samplers that carry it over rely on that.
    carry_over = True

    def __init__(self, context, sampling_eps=1e-3):
        self.eps, self.mask = sampling_eps, context.mask_id

    def draw_t(self, model, u):
        """Uniform numbers in [0, 1) to training times."""
        return u * (1 - self.eps) + self.eps

    def loss(self, model, x0, t):
        """Nats per token, [B, L], with gradients."""
        sigma = model.sigma(t)
        xt = model.corrupt(x0, (-sigma).exp())
        rows = (xt == self.mask).flatten().nonzero()[:, 0]
        hidden = model.hidden(xt, sigma).flatten(0, 1)[rows]
        weight = (model.dsigma(t) / torch.expm1(sigma))[rows // x0.shape[1]]
        nats = model.weighted_nll(hidden, x0.flatten()[rows], weight.to(hidden.dtype), self.mask)
        return nats.new_zeros(x0.numel()).index_copy(0, rows, nats).view_as(x0)

    def log_x0(self, model, xt, t, rows):
        """log p(x0 | xt), [N, V]: no mask, and an open token is certain."""
        logits = model.logits(model.hidden(xt, model.sigma(t)).flatten(0, 1)[rows]).clone()
        logits[:, self.mask] = -torch.inf
        log_p = logits.log_softmax(-1)
        token = xt.flatten()[rows][:, None]
        certain = torch.full_like(log_p, -torch.inf).scatter(1, token, 0.0)
        return torch.where(token == self.mask, log_p, certain)
