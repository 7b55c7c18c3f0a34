"""The configuration of a folder of GIDD that `maskdiff export --format hf` wrote."""

from transformers import PretrainedConfig


class DITConfig(PretrainedConfig):
    model_type = "dit"

    def __init__(
        self,
        vocab_size=50259,
        max_seq_len=512,
        hidden_size=768,
        timestep_cond_dim=128,
        num_hidden_layers=12,
        num_attention_heads=12,
        attention_dropout=0.0,
        p_uniform=0.0,
        t_eps=1e-4,
        **others,
    ):
        super().__init__(**others)
        self.vocab_size, self.max_seq_len = vocab_size, max_seq_len
        self.hidden_size, self.timestep_cond_dim = hidden_size, timestep_cond_dim
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.attention_dropout, self.p_uniform, self.t_eps = attention_dropout, p_uniform, t_eps
