"""The network of a folder of uniform diffusion that `maskdiff export --format hf` wrote: logits of every token at every position,
given the other positions."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_uniform import DUOConfig, UDLMConfig
from .network_dit import Network


class Uniform(PreTrainedModel):
    base_model_prefix = "backbone"

    def __init__(self, config):
        super().__init__(config)
        sizes = config.hidden_dim, config.cond_dim, config.n_blocks, config.n_heads, config.dropout
        self.backbone = Network(config.vocab_size, *sizes)
        self.post_init()

    def _init_weights(self, module):
        """The weights are read."""

    def forward(self, input_ids, timesteps, return_dict=None, **ignored):
        """Tokens [B, L] and noise levels [B], which count where `time_conditioning` is on."""
        if not self.config.time_conditioning:
            timesteps = torch.zeros_like(timesteps)
        logits = self.backbone(input_ids, timesteps)
        return MaskedLMOutput(logits=logits) if return_dict else logits


class UDLM(Uniform):
    config_class = UDLMConfig


class DUO(Uniform):
    config_class = DUOConfig
