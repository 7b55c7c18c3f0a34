#!/usr/bin/env python3
"""Makes a Hugging Face folder of the size of Qwen2.5-0.5B with random weights in bfloat16 (1 GB): scripts/random_qwen2.py FOLDER

It has no tokenizer. Needs nothing but Python.
"""

import array
import json
import os
import random
import struct
import sys

HIDDEN, LAYERS, HEADS, KEYS, WIDE, VOCAB = 896, 24, 14, 2, 4864, 151936
CONFIG = {
    'architectures': ['Qwen2ForCausalLM'], 'model_type': 'qwen2', 'hidden_size': HIDDEN, 'num_hidden_layers': LAYERS,
    'num_attention_heads': HEADS, 'num_key_value_heads': KEYS, 'intermediate_size': WIDE, 'vocab_size': VOCAB,
    'max_position_embeddings': 32768, 'rope_theta': 1000000.0, 'rms_norm_eps': 1e-6, 'hidden_act': 'silu',
    'tie_word_embeddings': True, 'use_sliding_window': False, 'rope_scaling': None, 'torch_dtype': 'bfloat16',
    'bos_token_id': 151643, 'eos_token_id': 151643,
}


def tensors():
    """Name and shape of each tensor."""
    yield 'model.embed_tokens.weight', [VOCAB, HIDDEN]
    size = HIDDEN // HEADS
    for i in range(LAYERS):
        at = f'model.layers.{i}.'
        yield at + 'input_layernorm.weight', [HIDDEN]
        for name, rows in (('q', HEADS * size), ('k', KEYS * size), ('v', KEYS * size)):
            yield f'{at}self_attn.{name}_proj.weight', [rows, HIDDEN]
            yield f'{at}self_attn.{name}_proj.bias', [rows]
        yield at + 'self_attn.o_proj.weight', [HIDDEN, HEADS * size]
        yield at + 'post_attention_layernorm.weight', [HIDDEN]
        yield at + 'mlp.gate_proj.weight', [WIDE, HIDDEN]
        yield at + 'mlp.up_proj.weight', [WIDE, HIDDEN]
        yield at + 'mlp.down_proj.weight', [HIDDEN, WIDE]
    yield 'model.norm.weight', [HIDDEN]


def bfloat16(numbers):
    """Numbers in bfloat16: the upper halves of their float32."""
    return array.array('H', [struct.unpack('<I', struct.pack('<f', x))[0] >> 16 for x in numbers]).tobytes()


def main():
    folder = sys.argv[1]
    os.makedirs(folder, exist_ok=True)
    draw = random.Random(1)
    # A million draws again and again: what the weights are does not matter, their number does.
    pool = bfloat16(draw.gauss(0.0, 0.02) for _ in range(1 << 20))
    header, end = {'__metadata__': {'format': 'pt'}}, 0
    for name, shape in tensors():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {'dtype': 'BF16', 'shape': shape, 'data_offsets': [end, end + 2 * count]}
        end += 2 * count
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for name, shape in tensors():
            left = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            if len(shape) == 1 and name.endswith('norm.weight'):
                file.write(bfloat16([1.0]) * (left // 2))
                continue
            while left > 0:
                left -= file.write(pool[:left])
    with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump(CONFIG, file, indent=2)


main()
