"""The network of a folder of GIDD that `maskdiff export --format hf` wrote: logits of every token at every position."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from .configuration_gidd import DITConfig
from .network_dit import Network


class CachedRotary(nn.Module):
    """The angle of each position, [L, K / 2], from its stored cosine and sine."""

    def __init__(self, length, width):
        super().__init__()
        self.register_buffer("cos_cached", torch.zeros(1, length, 3, 1, width))
        self.register_buffer("sin_cached", torch.zeros(1, length, 3, 1, width))

    def forward(self, length):
        half = self.cos_cached.shape[-1] // 2
        cos, sin = (t[0, :length, 0, 0, :half].float() for t in (self.cos_cached, self.sin_cached))
        return torch.atan2(sin, cos)


class DIT(PreTrainedModel):
    config_class = DITConfig

    def __init__(self, config):
        super().__init__(config)
        sizes = config.num_hidden_layers, config.num_attention_heads, config.attention_dropout
        network = Network(config.vocab_size, config.hidden_size, config.timestep_cond_dim, *sizes)
        network.rotary_emb = CachedRotary(config.max_seq_len, config.hidden_size // config.num_attention_heads)
        # The published weights have no prefix.
        for name, part in network.named_children():
            self.add_module(name, part)
        self.post_init()

    def _init_weights(self, module):
        """The weights are read."""

    def forward(self, input_ids, timesteps, return_dict=None, **ignored):
        """Tokens [B, L] and times [B]."""
        logits = Network.forward(self, input_ids, timesteps)
        return MaskedLMOutput(logits=logits) if return_dict else logits
