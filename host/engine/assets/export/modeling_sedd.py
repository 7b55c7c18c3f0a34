"""The network of a folder that `maskdiff export --format hf` wrote: the log of the concrete score."""

import math

import torch
from transformers import PreTrainedModel

from .configuration_sedd import SEDDConfig
from .network_dit import Network


class SEDD(PreTrainedModel):
    config_class = SEDDConfig

    def __init__(self, config):
        super().__init__(config)
        network = Network(
            config.tokens + 1,
            *(config.model[key] for key in ("hidden_size", "cond_dim", "n_blocks", "n_heads", "dropout")),
        )
        # The published weights have no prefix.
        for name, part in network.named_children():
            self.add_module(name, part)
        self.post_init()

    def _init_weights(self, module):
        """The weights are read."""

    def forward(self, input_ids, sigma, **ignored):
        """Tokens [B, L] and noise levels [B] -> log score [B, L, V], zero where the token stays."""
        logits = Network.forward(self, input_ids, sigma)
        scale = torch.log(torch.expm1(sigma.double())) + math.log(logits.shape[-1] - 1)
        logits = logits - scale.to(logits.dtype)[:, None, None]
        return logits.scatter(-1, input_ids[..., None], 0.0)
