"""The usual way in Python: `datasets.map` with `tokenizers` in two processes, then groups of one length.

datasets_map.py TEXT VOCAB MERGES LENGTH CACHE prints the seconds of both maps and the tokens in blocks.
"""

import itertools
import sys
import time

import datasets
from tokenizers import ByteLevelBPETokenizer

path, vocab, merges, length, cache = sys.argv[1:6]
length = int(length)
datasets.disable_progress_bars()
tokenizer = ByteLevelBPETokenizer(vocab, merges)
eos = tokenizer.token_to_id("<|endoftext|>")


def encode(batch):
    encoded = tokenizer.encode_batch(batch["text"], add_special_tokens=False)
    return {"input_ids": [each.ids + [eos] for each in encoded]}


def group(batch):
    ids = list(itertools.chain(*batch["input_ids"]))
    room = length - 2
    return {"input_ids": [[eos] + ids[i : i + room] + [eos] for i in range(0, len(ids) // room * room, room)]}


lines = datasets.load_dataset("text", data_files=path, split="train", cache_dir=cache)
started = time.time()
lines = lines.map(encode, batched=True, num_proc=2, remove_columns=["text"], load_from_cache_file=False)
lines = lines.map(group, batched=True, num_proc=2, load_from_cache_file=False)
print(time.time() - started, len(lines) * length)
