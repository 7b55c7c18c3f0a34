#!/usr/bin/env python3
"""Turns the printed benches into JSON: medians in seconds, MiB, and the ratios that the README quotes.

usage: scripts/bench_json.py PRINTED
"""

import json
import re
import sys

UNITS = {'ns': 1e-9, 'µs': 1e-6, 'ms': 1e-3, 's': 1.0, 'm': 60.0}
ROW = re.compile(r'[├╰]─ (\S+)\s+([\d.]+) (\w+)\s+│ ([\d.]+) (\w+)\s+│ ([\d.]+) (\w+)')

lines = open(sys.argv[1], encoding='utf-8').read().splitlines()
seconds = {}
for line in lines:
    if found := ROW.search(line):
        seconds[found[1]] = float(found[6]) * UNITS[found[7]]
words = [line.split() for line in lines]
memory = {w[1]: float(w[2]) for w in words if w[:1] == ['memory']}
load_ms = next((float(w[2]) for w in words if w[:1] == ['load']), None)



def best(bench):
    """A way that ran several times counts by its best, as the other does."""
    numbers = {}
    for w in words:
        if w[:1] == [bench]:
            numbers.setdefault(w[1], []).append(float(w[2]))
    return {name: max(all) for name, all in numbers.items()}


training, evaluation = best('training'), best('evaluation')
head = {w[1]: float(w[2]) for w in words if w[:1] == ['head']}

data = {w[1]: float(w[2]) for w in words if w[:1] == ['data']}

ratios = {}


def ratio(name, table, above, below):
    if above in table and below in table:
        ratios[name] = round(table[above] / table[below], 3)


ratio('ddpm_cache V=50258 L=256 T=1000 B=1: original / ours', seconds, 'large_original', 'large_product')
ratio('ddpm_cache V=1024 L=128 T=128 B=4: original / ours', seconds, 'small_original', 'small_product')
ratio('V=50258 L=256 B=8: ddpm_cache T=1000 / first_hitting', seconds, 'batch_1000_steps', 'batch_first_hitting')
ratio('V=1024 L=256 T=1000 B=1: python / rust', seconds, 'language_python', 'language_rust')
ratio('ar V=1024 L=1024 B=1: recomputed / cached', seconds, 'causal_recomputed', 'causal_product')
ratio('training step V=50258: ours / full logits', seconds, 'Fused', 'FullLogits')
ratio('training step V=50258: ours / original', seconds, 'Fused', 'Original')
ratio('training memory V=50258: ours / full logits', memory, 'fused', 'full_logits')
ratio('training memory V=50258: ours / original', memory, 'fused', 'original')
for v in ('50258', '1024'):
    ratio(f'whole training step V={v} L=128 B=32: tokens/s, ours / original', training,
          f'product_{v}_tokens_per_s', f'original_{v}_tokens_per_s')
    ratio(f'whole training step V={v} L=128 B=32: peak memory, ours / original', training,
          f'product_{v}_peak_mib', f'original_{v}_peak_mib')
    ratio(f'whole training step V={v} L=128 B=32: time, dit in Python / in Rust', training,
          f'product_{v}_tokens_per_s', f'python_{v}_tokens_per_s')
ratio('bound of uniform diffusion V=50258 D=128 256 rows: time, fused / dense', head, 'fused_s', 'dense_s')
ratio('bound of uniform diffusion V=50258 D=128 256 rows: peak memory, fused / dense', head,
      'fused_peak_mib', 'dense_peak_mib')
uniform = {w[1]: float(w[2]) for w in words if w[:1] == ['uniform']}
ratio('uniform diffusion, whole step V=50258 L=128 B=8: time, over all logits / ours', uniform, 'dense_step_s', 'product_step_s')
ratio('uniform diffusion, whole step V=50258 L=128 B=8: peak memory, ours / over all logits', uniform,
      'product_peak_mib', 'dense_peak_mib')
ratio('uniform diffusion, whole step V=50258 L=128 B=8: its matrix products alone / ours', uniform,
      'products_step_s', 'product_step_s')
ratio('two ranks of one thread / one process of two: tokens/s', training,
      'ranks_2_tokens_per_s', 'ranks_1_tokens_per_s')
ratio('170M parameters, a checkpoint a minute: steps/s with / without', training,
      'checkpoint_with_steps_per_s', 'checkpoint_without_steps_per_s')
ratio('dimamba memory: 4,096 tokens / 1,024 tokens', memory, 'scan_4096', 'scan_1024')
ratio('GPT-2 tokens/s into blocks: ours / datasets.map with two processes', data,
      'tokenize_tokens_per_s', 'datasets_map_tokens_per_s')
ratio('likelihood V=50258 L=128 B=32: tokens/s, ours / original', evaluation,
      'product_tokens_per_s', 'original_tokens_per_s')
ratio('likelihood V=50258 L=128 B=32: peak memory, ours / original', evaluation,
      'product_peak_mib', 'original_peak_mib')
ratio('700 MB of weights: time as tensors / as bytes', evaluation, 'read_tensors_s', 'read_file_s')
ratio('700 MB of weights: peak memory of reading tensors / size', evaluation, 'read_tensors_peak_mib', 'file_mib')
ratio('700 MB of weights: peak memory of loading a model / size', evaluation, 'load_peak_mib', 'file_mib')
tracking = best('tracking')
blocks = {w[1]: float(w[2]) for w in words if w[:1] == ['blocks']}
ratio('training step V=1024 L=512 b=16: CPU seconds, blocks / whole', blocks, 'train_1024_blocks_s', 'train_1024_whole_s')
ratio('training step V=50258 L=128 b=16: CPU seconds, blocks / whole', blocks, 'train_50258_blocks_s',
      'train_50258_whole_s')
ratio('512 tokens b=16 first_hitting: CPU seconds, without / with the cache', blocks, 'sample_uncached_s', 'sample_cached_s')
ratio('512 tokens b=16 first_hitting: tokens read, without / with the cache', blocks, 'sample_uncached_rows',
      'sample_cached_rows')
ratio('512 tokens first_hitting: CPU seconds, whole / blocks of 16 with the cache', blocks, 'sample_whole_s',
      'sample_cached_s')
serve = {w[1]: float(w[2]) for w in words if w[:1] == ['serve']}
ratio('16 clients at once / one at a time: tokens/s', serve, 'tokens_per_s_of_16', 'tokens_per_s_alone')
for way in ('prefix', 'dual'):
  ratio(f'32 tokens in blocks of 8 behind 224: CPU seconds, without / with the approximate cache `{way}`', blocks, 'cache_none_s', f'cache_{way}_s')
  ratio(f'32 tokens in blocks of 8 behind 224: tokens read, without / with the approximate cache `{way}`', blocks, 'cache_none_rows', f'cache_{way}_rows')
ratio('10,000 rows to a bad W&B server: time of the steps, with / without', tracking, 'with_s', 'without_s')
large = {w[1]: float(w[2]) for w in words if w[:1] == ['large']}
ratio('500M parameters in bf16: time to load / to read the file', large, 'load', 'read')
ratio('500M parameters in bf16: peak memory of loading / size', large, 'load_memory', 'file')
ratio('500M parameters in bf16, 64 tokens: CPU seconds of a call, transformers / ours', large, 'transformers_call_cpu', 'call_cpu')
ratio('500M parameters in bf16, LoRA of 2 x 64 tokens: memory with / without activation checkpointing', large,
      'lora_lean_memory', 'lora_memory')
result = {'seconds': seconds, 'memory_mib': memory, 'head': head, 'uniform': uniform, 'training': training, 'evaluation': evaluation, 'tracking': tracking, 'blocks': blocks, 'serve': serve, 'large': large, 'data': data,
          'load_plugins_ms': load_ms, 'ratios': ratios}
print(json.dumps(result, indent=1, ensure_ascii=False))
