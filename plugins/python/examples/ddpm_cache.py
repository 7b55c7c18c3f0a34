"""`ddpm_cache` in Python: the same law as the shipped sampler, and a place to start from.
    maskdiff sample --checkpoint RUN sampling.predictor=python:ddpm_cache.py:DdpmCache
    maskdiff plugins check ddpm_cache.py:DdpmCache --kind sampler
"""
import torch


class DdpmCache:
    """Options are the arguments after the context: `sampling.steps=64`."""

    def __init__(self, context, steps=128, t_min=1e-5):
        if steps < 1:
            raise ValueError(f'`sampling.steps` must be at least 1, got {steps}')
        self.steps, self.t_min, self.length = steps, t_min, context.length

    def sample(self, model, xt):
        """xt [B, L], masks where tokens are wanted -> tokens [B, L]."""
        for i in range(self.steps):
            t, s = self.time(i), self.time(i + 1)
            opens = xt == model.mask_id
            alpha_t, alpha_s = model.alpha(t), model.alpha(s)
            # A masked token opens whatever the network says: decide that first.
            coins = torch.rand(xt.shape, dtype=torch.float64, device=xt.device)
            opens &= coins < (alpha_s - alpha_t) / (1 - alpha_t)
            xt = self.open(model, xt, opens, t)
            model.progress(i + 1, self.steps, xt)
        return self.open(model, xt, xt == model.mask_id, self.t_min, best=True)

    def time(self, i):
        return 1 - (1 - self.t_min) * i / self.steps

    def open(self, model, xt, opens, t, best=False):
        changed = opens.any(1).nonzero()[:, 0]
        if len(changed) == 0:
            return xt
        x = xt[changed]
        rows = opens[changed].flatten().nonzero()[:, 0]
        log_x0 = model.log_x0(x, model.times(len(x), t), rows)
        # Drawn in float64: float32 noise would lose rare tokens.
        token = log_x0.argmax(-1) if best else torch.multinomial(log_x0.double().exp(), 1)[:, 0]
        x = x.flatten().index_copy(0, rows, token).view_as(x)
        return xt.index_copy(0, changed, x)

    def law(self, model, xt, t, s):
        """The law of a step, [B, L, V]."""
        batch, length = xt.shape
        rows = torch.arange(batch * length, device=xt.device)
        log_x0 = model.log_x0(xt, model.times(batch, t), rows)
        if s > 0:
            law = model.posterior(xt.flatten(), model.alpha(t), model.alpha(s), log_x0.exp())
        else:
            law = torch.nn.functional.one_hot(log_x0.argmax(-1), model.vocab_size).to(log_x0)
        return law.view(batch, length, -1)
