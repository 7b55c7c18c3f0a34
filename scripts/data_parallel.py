"""The time of a data parallel step by a model: what hides behind the backward pass, what does not, and what breaks first.

Not a measurement. Each assumption is an option; the defaults are MDLM's small network on nodes of eight H100 or H200.

    python3 scripts/data_parallel.py [--parameters N] [--step SECONDS] [--gpus 8 64 512] ...
"""

import argparse


def options():
    say = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    say.add_argument("--parameters", type=float, default=169.6e6, help="that have a gradient in float32")
    say.add_argument("--tokens", type=int, default=64 * 1024, help="of a rank and step")
    say.add_argument("--step", type=float, default=0.119, help="seconds of a step of one GPU (scripts/gpu_time.py)")
    say.add_argument("--backward", type=float, default=0.62, help="share of the step that is backward, behind which sums hide")
    say.add_argument("--node", type=int, default=8, help="GPUs of a node")
    say.add_argument("--inside", type=float, default=350e9, help="bytes a second of a ring inside a node, each way")
    say.add_argument("--between", type=float, default=40e9, help="bytes a second of each GPU between nodes (400 Gb/s at 80 %%)")
    say.add_argument("--bucket", type=float, default=25 * 2**20, help="bytes that are summed at a time")
    say.add_argument("--latency", type=float, default=15e-6, help="seconds of a hop of NCCL between nodes")
    say.add_argument("--host", type=float, default=25e-6, help="seconds of a hop of Gloo, by which numbers of the CPU are summed")
    say.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    return say.parse_args()


def model(o, gpus):
    """Seconds of the parts of a step over `gpus`."""
    local = min(gpus, o.node)
    nodes = max(1, gpus // o.node)
    size = 4 * o.parameters

    def summed(part):
        # Scattered inside the node, summed between nodes by each GPU for its share, gathered inside the node.
        inside = 2 * (local - 1) / local * part / o.inside
        between = 2 * (nodes - 1) / nodes * part / local / o.between + 2 * (nodes - 1) * o.latency
        return inside + between

    buckets = max(1, round(size / o.bucket))
    whole = buckets * summed(size / buckets)
    # The last bucket begins when the backward pass has ended.
    hidden = min(whole - summed(size / buckets), o.backward * o.step)
    # Loss, counts and the wish to stop: a ring of Gloo after the pass, and a last sum of NCCL that bounds the wait.
    numbers = 2 * (gpus - 1) * o.host + 2 * (local - 1 + nodes - 1) * o.latency
    return {"sums": whole, "exposed": whole - hidden, "numbers": numbers, "step": o.step + whole - hidden + numbers}


def main():
    o = options()
    print(f"{4 * o.parameters / 1e6:.0f} MB of gradients, {1e3 * o.step:.0f} ms a step of one GPU")
    print("| GPUs | sums of gradients | not hidden | numbers by Gloo | step | tokens/s | efficiency |")
    print("|---|---|---|---|---|---|---|")
    for gpus in o.gpus:
        part = model(o, gpus)
        speed = gpus * o.tokens / part["step"]
        cells = [f"{1e3 * part[name]:.1f} ms" for name in ("sums", "exposed", "numbers", "step")]
        print(f"| {gpus} | {' | '.join(cells)} | {speed / 1e6:.1f}M | {100 * o.step / part['step']:.0f} % |")


main()
