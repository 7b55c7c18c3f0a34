"""Times the original program (kuleshov-group/mdlm) on this machine's CPU, for compare.py: one work, as one JSON object.

  python work.py CHECKOUT '{"work": "train", "vocab": 1024, "length": 128, "batch": 32, "size": [256, 4, 4], "times": 10}'

The checkout is used as it is. Lightning's loop is left out, which favours the original: a training step is its loss, backward, clipping,
AdamW and average. What it imports for GPUs alone has stand-ins here: `flash_attn` computes with libtorch's attention, and the packages of
Mamba, which DiT does not use, are there in name only.
"""
import importlib.abc
import importlib.machinery
import json
import resource
import sys
import time
import types

import torch
from torch.nn import functional

ABSENT = ('flash_attn', 'mamba_ssm', 'causal_conv1d')


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of packages that need a GPU: any name in them is None, but for the two functions that DiT calls."""

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: None if not name.startswith('__') else self._lacks(name)
        return module

    def exec_module(self, module):
        if module.__name__ == 'flash_attn.layers.rotary':
            module.apply_rotary_emb_qkv_ = rotated
        if module.__name__ == 'flash_attn.flash_attn_interface':
            module.flash_attn_varlen_qkvpacked_func = attention

    @staticmethod
    def _lacks(name):
        raise AttributeError(name)


def rotated(qkv, cos, sin):
    """Queries and keys of qkv [B, L, 3, H, K] with their halves rotated by cos and sin [L, K/2]."""
    cos, sin = cos[:, None, None], sin[:, None, None]
    qk, v = qkv.split([2, 1], 2)
    a, b = qk.chunk(2, -1)
    return torch.cat([torch.cat([a * cos - b * sin, b * cos + a * sin], -1), v], 2)


def attention(qkv, borders, longest, dropout, causal=False):
    """Attention of texts of one length, which stand behind each other in qkv [B L, 3, H, K]."""
    assert dropout == 0.0
    q, k, v = qkv.unflatten(0, (-1, longest)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(0, 1)


def load(checkout, asked):
    """The original's `Diffusion` with the network that is asked for."""
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, checkout)
    import flash_attn.flash_attn_interface
    import hydra
    import transformers

    import diffusion
    import main  # It registers what its configuration computes.

    assert main and flash_attn.flash_attn_interface
    width, heads, blocks = asked['size']
    overrides = [
        'trainer.accelerator=cpu', 'trainer.devices=1', f'model.hidden_size={width}', f'model.n_heads={heads}', f'model.n_blocks={blocks}',
        'model.cond_dim=128', 'model.dropout=0.1', f'model.length={asked["length"]}', f'loader.global_batch_size={asked["batch"]}',
        'sampling.predictor=ddpm_cache', f'sampling.steps={asked["times"]}',
    ]
    with hydra.initialize_config_dir(f'{checkout}/configs', version_base=None):
        config = hydra.compose('config', overrides)
    # Of the tokenizer it reads this, and of that of the judge, which it would download, whether it pads.
    tokenizer = types.SimpleNamespace(vocab_size=asked['vocab'] - 1, mask_token=None, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    judge = types.SimpleNamespace(pad_token='', eos_token='', eos_token_id=0)
    transformers.AutoTokenizer.from_pretrained = staticmethod(lambda *_, **__: judge)
    torch.manual_seed(1)
    model = diffusion.Diffusion(config, tokenizer)
    # Its head begins at zero: texts of a trained network are not uniform.
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight, std=0.05)
    return model


def main_work(model, asked):
    """What is timed: a function without arguments."""
    tokens = torch.randint(0, asked['vocab'] - 1, (asked['batch'], asked['length']))
    mask = torch.ones(tokens.shape)
    bf16 = torch.autocast('cpu', torch.bfloat16, enabled=asked.get('bf16', False))
    if asked['work'] == 'train':
        parameters = list(model.backbone.parameters())
        (optimizer,), (scheduler,) = model.configure_optimizers()
        model.train()

        def step():
            with bf16:
                loss = model._loss(tokens, mask).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            model.ema.update(parameters)
            scheduler['scheduler'].step()

        return step
    model.eval()
    if asked['work'] == 'eval':

        @torch.no_grad()
        def measure():
            with bf16:
                loss = model._loss(tokens, mask)
            model.valid_metrics.update(loss.nlls, loss.token_mask)

        return measure

    def sample():
        with bf16:
            model._sample()

    return sample


def main():
    checkout, asked = sys.argv[1], json.loads(sys.argv[2])
    body = main_work(load(checkout, asked), asked)
    rounds, times = (5, max(1, asked['times'] // 5)) if asked['work'] != 'sample' else (asked.get('rounds', 1), 1)
    if asked['work'] != 'sample':
        body()
    wall, cpu = [], []
    for _ in range(rounds):
        begun = time.perf_counter(), time.process_time()
        for _ in range(times):
            body()
        wall.append((time.perf_counter() - begun[0]) / times)
        cpu.append((time.process_time() - begun[1]) / times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({'wall': sorted(wall)[rounds // 2], 'cpu': sorted(cpu)[rounds // 2], 'peak_mib': peak}))


main()
