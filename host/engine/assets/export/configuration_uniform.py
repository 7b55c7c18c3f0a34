"""The configuration of a folder of uniform diffusion that `maskdiff export --format hf` wrote."""

from transformers import PretrainedConfig


class UniformConfig(PretrainedConfig):
    def __init__(
        self,
        vocab_size=50258,
        model_length=1024,
        hidden_dim=768,
        cond_dim=128,
        n_blocks=12,
        n_heads=12,
        dropout=0.1,
        time_conditioning=True,
        **others,
    ):
        super().__init__(**others)
        self.vocab_size, self.model_length = vocab_size, model_length
        self.hidden_dim, self.cond_dim = hidden_dim, cond_dim
        self.n_blocks, self.n_heads = n_blocks, n_heads
        self.dropout, self.time_conditioning = dropout, time_conditioning


class UDLMConfig(UniformConfig):
    model_type = "udlm"


class DUOConfig(UniformConfig):
    model_type = "duo"
