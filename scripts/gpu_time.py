"""The time of a training step and of samples on a GPU by a model: bytes and products of each kernel, from a recorded list of them.

Not a measurement. The list (scripts/gpu/step.txt) is what MDLM's small network starts on a pretended GPU with fused kernels in bfloat16, with
1 and 2 blocks and 1 and 2 short sequences. Bytes and products grow linearly in both, those of attention with the length too. A kernel takes the
time of its bytes or of its products, whichever is longer. Each assumption is an option; the defaults are one H200.

    python3 scripts/gpu_time.py [--batch 64] [--blocks 12] [--products 620e12] ...
"""

import argparse
import math
import pathlib
import re

BYTES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "i64": 8, "i32": 4, "bool": 1, "other": 4}
# What is only written, or of which a part is read that is as large as the result.
ONLY_WRITTEN = {"zero_", "fill_", "random_", "normal_", "uniform_", "bernoulli_", "arange", "full", "zeros", "ones"}
PICKED = {"index_select", "gather", "embedding", "index"}
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "linear", "baddbmm", "mkldnn_linear", "convolution"}
# Numbers of a tensor that only a vocabulary of tens of thousands makes so large.
LARGE = 2e7
ATTENTION = "_scaled_dot_product"


def options():
    say = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    say.add_argument("--recording", default=pathlib.Path(__file__).parent / "gpu/step.txt")
    say.add_argument("--batch", type=int, default=64, help="sequences of a step, or drawn together")
    say.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    say.add_argument("--blocks", type=int, default=12)
    say.add_argument("--bandwidth", type=float, default=3.9e12, help="bytes a second that a kernel reaches (H200: 4.8e12 in its papers)")
    say.add_argument("--products", type=float, default=620e12, help="products and sums a second of a matrix product in bfloat16")
    say.add_argument("--odd", type=float, default=0.5, help="share of it where rows are no multiples of 16 bytes")
    say.add_argument("--attention", type=float, default=430e12, help="the same of attention")
    say.add_argument("--start", type=float, default=2.5e-6, help="seconds of the shortest kernel, with the gap behind it")
    say.add_argument("--rows", type=int, default=1 << 27, help="numbers of logits that are held at once")
    return say.parse_args()


class Kernel:
    """One line: a name, and the tensors that it reads and writes."""

    def __init__(self, line):
        self.name, reads, writes = line.rstrip("\n").split("\t")
        # "!": a matrix whose rows begin where no load of 16 bytes does.
        self.is_odd = "!" in reads + writes
        self.reads, self.writes = [self.tensors(words.replace("!", "")) for words in (reads, writes)]
        # An operator with `out` has its result among its arguments, which it does not read.
        if re.search(r"[._]out$", self.name) and self.reads[-1:] == self.writes:
            self.reads.pop()

    @staticmethod
    def tensors(words):
        split = (word.split(":") for word in words.split())
        return [(kind, tuple(int(size) for size in sizes.split("x"))) for kind, sizes in split]

    @property
    def short(self):
        return re.sub(r"^\w+::|\.\w+$", "", self.name)

    def bytes(self):
        size = lambda tensors: sum(BYTES[kind] * math.prod(sizes) for kind, sizes in tensors)
        if self.short in ONLY_WRITTEN:
            return size(self.writes)
        if self.short in PICKED:
            return 2 * size(self.writes) + size([t for t in self.reads if t[0].startswith("i")])
        return size(self.reads) + size(self.writes)

    def flops(self):
        if self.short in PRODUCTS:
            matrices = [sizes for _, sizes in self.reads if len(sizes) > 1]
            # [.., M, K] by [K, N] or [N, K]: twice M K N, where M K and N are known from one side and the result.
            return 2 * math.prod(self.writes[0][1]) * matrices[-2][-1] if len(matrices) > 1 else 0
        if self.short.startswith(ATTENTION):
            batch, heads, length, width = self.reads[0][1]
            # Two products forward; backward five of them, of which one is made again.
            return 4 * batch * heads * length * length * width * (2.5 if "backward" in self.short else 1)
        return 0

    def largest(self):
        return max((math.prod(sizes) for _, sizes in self.reads + self.writes), default=0)

    def part(self):
        """What it is counted under."""
        name, vocabulary = self.short, self.largest() > LARGE
        if name.startswith(ATTENTION):
            return "attention"
        if name in PRODUCTS:
            return "head, products" if vocabulary else "products of the blocks"
        if name.startswith(("nll", "bound")):
            return "head, between its products"
        if name.startswith("turn"):
            return "rotary"
        if name.startswith("gated"):
            return "residuals"
        if name.startswith(("norm", "columns")):
            return "layer norms"
        if name.startswith(("_fused_adam", "_foreach")):
            return "optimizer and average"
        if name.startswith("gelu"):
            return "GELU"
        return "head, sums of gradients" if vocabulary else "casts, sums, embedding, rest"


def read(path):
    """{(what, blocks, rows): (bytes between steps, bytes that a forward pass leaves, kernels)}"""
    found, here = {}, None
    for line in open(path, encoding="utf-8"):
        if line.startswith("#"):
            mark = re.match(r"# (\w+), blocks (\d+), rows (\d+), rest (\d+), held (\d+)", line)
            if mark:
                what, blocks, rows, rest, held = mark.groups()
                here = (int(rest), int(held), [])
                found[what, int(blocks), int(rows)] = here
        else:
            here[2].append(Kernel(line))
    return found


def seconds(o, one, two):
    """Seconds by part of a list at all sequences of a step, from those of one and of two short ones."""
    assert [k.name for k in one] == [k.name for k in two], "the lists of 1 and 2 sequences are of other kernels: record them again"
    grown = lambda a, b: a + (o.shorts - 1) * (b - a)
    head = [i for i, kernel in enumerate(one) if kernel.short.startswith(("nll", "bound"))]
    in_head = set()
    for i in head:
        in_head |= {i - 1, i}
        in_head |= {k for k in range(i + 1, min(i + 8, len(one))) if one[k].largest() > LARGE or one[k].short in PRODUCTS}
    parts, kernels = {}, 0
    for i, (a, b) in enumerate(zip(one, two)):
        chunks = 1
        moved, computed = grown(a.bytes(), b.bytes()), grown(a.flops(), b.flops())
        if a.short.startswith(ATTENTION):
            computed *= o.length / o.short
        if i in in_head:
            # The rows are taken in chunks, each of which reads the matrix again.
            rows, columns = one[head[0]].reads[0][1]
            chunks = math.ceil(grown(rows, two[head[0]].reads[0][1][0]) / (o.rows // columns // 64 * 64))
            moved += (chunks - 1) * (2 * a.bytes() - b.bytes())
        rate = o.attention if a.short.startswith(ATTENTION) else o.products * (o.odd if a.is_odd else 1)
        took = max(chunks * o.start, moved / o.bandwidth, computed / rate)
        parts[a.part()] = parts.get(a.part(), 0) + took
        kernels += chunks
    return parts, kernels


def whole(o, found, what):
    """The same at `blocks` blocks, with the kernels and the bytes at most."""
    lists = {blocks: seconds(o, found[what, blocks, 1][2], found[what, blocks, 2][2]) for blocks in (1, 2)}
    grown = lambda a, b: a + (o.blocks - 1) * (b - a)
    parts = {name: grown(lists[1][0].get(name, 0), took) for name, took in lists[2][0].items()}
    def most(blocks):
        (rest, one, _), (_, two, _) = found[what, blocks, 1], found[what, blocks, 2]
        return rest + one + (o.shorts - 1) * (two - one)

    return parts, grown(lists[1][1], lists[2][1]), grown(most(1), most(2))


def show(title, parts, kernels):
    total = sum(parts.values())
    print(f"| {title} | ms |\n|---|---|")
    for name, took in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {1e3 * took:.1f} |")
    print(f"| **sum**, {kernels:.0f} kernels | **{1e3 * total:.1f}** |")
    return total


def main():
    o = options()
    found = read(o.recording)
    # Tokens of a recorded sequence, and as how many of these the sequences of a step count.
    attention = next(k for k in found["step", 1, 1][2] if k.short.startswith(ATTENTION))
    o.short = attention.reads[0][1][2]
    o.shorts, length = o.batch * o.length / o.short, o.length
    parts, kernels, most = whole(o, found, "step")
    total = show(f"a training step of {o.batch} × {length:,} tokens", parts, kernels)
    print(f"\n{o.batch * length / total / 1e3:.0f}k tokens/s, {most / 2**30:.1f} GiB at most\n")
    parts, kernels, _ = whole(o, found, "pass")
    total = show(f"a pass over {o.batch} texts while drawing", parts, kernels)
    print(f"\n{o.batch} × {length:,} tokens, one at a time: {total * length:.1f} s")


main()
