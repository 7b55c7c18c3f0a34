"""maskdiff beside the original program (kuleshov-group/mdlm) itself, on the same work, in one run on one machine.

  python3 compare.py PROGRAM PYTHON CHECKOUT [--bf16] [--json FILE] [NAME ...]

PROGRAM is a release build, PYTHON has what the original needs (`scripts/bench.sh --original CHECKOUT` installs it), NAME a row of ROWS.
Ours is the program as users start it: a step, a token or a text costs the difference of two runs of different length, so that start,
data and the last checkpoint do not count. The original is timed without its start. The limit is what the matrix products of the same
work take alone (`maskdiff bench`). It refuses a busy machine. Networks are untrained: cost does not depend on weights.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

SMALL, WIDE = (256, 4, 4), (384, 6, 6)
# What is done, vocabulary with the mask, length, sequences of a batch, (width, heads, layers), how often by the original; then how
# often in the shorter and in the longer run of ours. Sampling has the steps of `ddpm_cache` in the place of how often.
ROWS = {
    'train-large': ('train', 50258, 128, 32, SMALL, 5, (3, 11)),
    'train-wide': ('train', 50258, 256, 8, WIDE, 5, (4, 12)),
    'train-small': ('train', 1024, 128, 32, SMALL, 20, (10, 50)),
    'train-long': ('train', 1024, 2048, 2, SMALL, 10, (5, 25)),
    'eval-large': ('eval', 50258, 128, 32, SMALL, 10, (6, 30)),
    'eval-small': ('eval', 1024, 128, 32, SMALL, 50, (6, 60)),
    'sample-large': ('sample', 50258, 256, 1, SMALL, 1000, (1, 4)),
    'sample-small': ('sample', 1024, 128, 4, SMALL, 128, (1, 6)),
}
UNITS = {'train': 's a step', 'eval': 's a batch', 'sample': 's a batch of texts'}
ENOUGH = 0.05


def busy(seconds=2.0):
    """The share of the machine's processors that other programs use."""
    def used():
        numbers = list(map(int, pathlib.Path('/proc/stat').read_text().splitlines()[0].split()[1:]))
        return sum(numbers[:3]) + sum(numbers[5:8]), sum(numbers[:8])
    before = used()
    time.sleep(seconds)
    after = used()
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def started(command):
    """Wall seconds, CPU seconds and peak MiB of a whole process, and what it printed."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, stdout=out, stderr=said)
        _, status, use = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begun
        for file in (said, out):
            file.seek(0)
        if status:
            sys.exit(f'this failed: {" ".join(command)}\n{said.read().decode()[-3000:]}')
        return wall, use.ru_utime + use.ru_stime, use.ru_maxrss / 1024, out.read().decode()


def between(short, long, times):
    """Wall and CPU seconds of one time, and the peak of the longer run."""
    few, many = times
    return (long[0] - short[0]) / (many - few), (long[1] - short[1]) / (many - few), long[2]


def data(folder, vocab, length, batch, batches):
    """A tokenizer of vocab - 1 words, behind which the mask comes, a text to train on, and two of so many batches to measure."""
    base = folder / str(vocab)
    words = {'<|endoftext|>': 0, **{f'w{i}': i for i in range(1, vocab - 1)}}
    special = {'id': 0, 'content': '<|endoftext|>', 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
    tokenizer = {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': [special], 'normalizer': None, 'post_processor': None,
                 'pre_tokenizer': {'type': 'WhitespaceSplit'}, 'decoder': None,
                 'model': {'type': 'WordLevel', 'vocab': words, 'unk_token': '<|endoftext|>'}}
    base.with_suffix('.json').write_text(json.dumps(tokenizer))
    draw = random.Random(1)
    for name, tokens in (('train', 400_000), ('few', batches[0] * batch * length), ('many', batches[1] * batch * length)):
        lines = -(-tokens // 101)
        text = ''.join(' '.join(f'w{draw.randrange(1, vocab - 1)}' for _ in range(100)) + '\n' for _ in range(lines))
        (folder / f'{vocab}.{name}.txt').write_text(text)
    return base


def overrides(base, row):
    _, _, length, batch, (width, heads, blocks), _, _ = row
    return [
        'data=text', f'data.path={base}.train.txt', f'data.tokenizer_name_or_path={base}.json', f'model.length={length}',
        f'loader.global_batch_size={batch}', f'loader.eval_batch_size={batch}', f'model.hidden_size={width}', f'model.n_heads={heads}',
        f'model.n_blocks={blocks}', 'model.cond_dim=128', 'model.dropout=0.1', 'training.ema=0.9999', 'trainer.val_check_interval=0',
        'trainer.limit_val_batches=1', 'trainer.num_sanity_val_steps=0', 'sampling.num_sample_log=0', 'trainer.log_every_n_steps=100000',
    ]


def ours(program, folder, name, row, precision):
    """Seconds, CPU seconds and MiB of one time of a row; and its matrix products alone, where it is not drawing, which leaves most of them out."""
    work, vocab, length, batch, _, times, (few, many) = row
    base = data(folder, vocab, length, batch, (few, many))
    shared = [*overrides(base, row), *precision]
    run = f'{folder}/{name}'
    if work == 'train':
        runs = [started([program, 'train', '-q', *shared, f'trainer.max_steps={n}', f'run.dir={run}-{n}']) for n in (few, many)]
        words = ['train', *shared]
    else:
        started([program, 'train', '-q', *overrides(base, row), 'trainer.max_steps=1', f'run.dir={run}'])
        words = [work, '--checkpoint', run, *precision]
        if work == 'eval':
            words += ['eval.results=none', f'loader.eval_batch_size={batch}']
            runs = [started([program, '-q', *words, f'data.valid_path={base}.{part}.txt']) for part in ('few', 'many')]
            words += [f'data.valid_path={base}.many.txt']
        else:
            words += ['sampling.predictor=ddpm_cache', f'sampling.steps={times}', f'loader.eval_batch_size={batch}']
            runs = [started([program, '-q', *words, f'sampling.num_sample_batches={n}']) for n in (few, many)]
    if work == 'sample':
        return between(*runs, (few, many)), None
    bench = json.loads(started([program, 'bench', '--format', 'json', '-q', words[0], '--seconds', '2', *words[1:]])[3].splitlines()[0])
    return between(*runs, (few, many)), bench['products']


def original(python, checkout, row, bf16):
    work, vocab, length, batch, size, times, _ = row
    asked = {'work': work, 'vocab': vocab, 'length': length, 'batch': batch, 'size': size, 'times': times, 'bf16': bf16}
    file = pathlib.Path(__file__).with_name('work.py')
    made = json.loads(started([python, str(file), checkout, json.dumps(asked)])[3].splitlines()[-1])
    return made['wall'], made['cpu'], made['peak_mib']


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument('program')
    ask.add_argument('python')
    ask.add_argument('checkout')
    ask.add_argument('names', nargs='*', metavar='NAME', help=', '.join(ROWS))
    ask.add_argument('--bf16', action='store_true')
    ask.add_argument('--json')
    # Options may stand between the names.
    asked = ask.parse_intermixed_args()
    if unknown := [name for name in asked.names if name not in ROWS]:
        ask.error(f'there is no row {unknown[0]}: {", ".join(ROWS)}')
    os.environ.setdefault('OMP_NUM_THREADS', str(len(os.sched_getaffinity(0))))
    if (share := busy()) > ENOUGH:
        sys.exit(f'other programs use {share:.0%} of this machine: figures would count for nothing. Stop them and start again.')
    model = [line.split(':')[1].strip() for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    print(f'{model[0]}, {os.environ["OMP_NUM_THREADS"]} threads, {"bf16" if asked.bf16 else "float32"}, {started([asked.program, "--version"])[3].strip()}\n')
    precision = ['trainer.precision=bf16'] if asked.bf16 else []
    made = {}
    print('| work | wall: original | ours | ratio | CPU: original | ours | ratio | MiB: original | ours | share | products alone: s, GFLOP/s | share of the limit |')
    print('|---|---|---|---|---|---|---|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.names or ROWS:
            theirs = original(asked.python, os.path.abspath(asked.checkout), ROWS[name], asked.bf16)
            own, products = ours(os.path.abspath(asked.program), pathlib.Path(folder), name, ROWS[name], precision)
            made[name] = {'original': theirs, 'ours': own, 'products': products}
            cells = [f'{name}, {UNITS[ROWS[name][0]]}']
            for k in (0, 1):
                cells += [f'{theirs[k]:.3g}', f'{own[k]:.3g}', f'{theirs[k] / own[k]:.2f}']
            cells += [f'{theirs[2]:.0f}', f'{own[2]:.0f}', f'{own[2] / theirs[2]:.2f}']
            if products:
                cells += [f'{products["seconds"]:.3g}, {products["flops_per_s"] / 1e9:.0f}', f'{products["seconds"] / own[0]:.2f}']
            else:
                cells += ['', '']
            print('|', ' | '.join(cells), '|', flush=True)
    if asked.json:
        pathlib.Path(asked.json).write_text(json.dumps(made, indent=1))


main()
