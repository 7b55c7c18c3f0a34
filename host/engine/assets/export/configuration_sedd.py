"""The configuration of a folder that `maskdiff export --format hf` wrote."""

from transformers import PretrainedConfig


class SEDDConfig(PretrainedConfig):
    model_type = "sedd"

    def __init__(self, tokens=50257, model=None, graph=None, noise=None, **others):
        super().__init__(**others)
        self.tokens, self.model, self.graph, self.noise = tokens, model or {}, graph or {}, noise or {}
