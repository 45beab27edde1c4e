"""Time the attention bridges beside Hugging Face's attention, in pairs.

Candidate and reference run alternately on the same inputs in one process, so that drift of the machine falls on both.
What is printed is the median of the paired ratios with its quartiles, and whether the outputs have the same bits.

    python tools/time_attention.py [--bridge cgverify --bridge transformer_lens] [--pairs 30] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from cgverify.candidate import find
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.window import Setting, Window

SHAPES = ((2, 8), (2, 128), (1, 512), (1, 1024), (1, 2048))


def seconds(module: Callable[..., Any], inputs: dict[str, Any]) -> float:
    started = time.perf_counter()
    module(**inputs)
    return time.perf_counter() - started


def paired_ratios(
    candidate: Callable[..., Any], reference: Callable[..., Any], inputs: dict[str, Any], pairs: int
) -> list[float]:
    """Candidate's time over the reference's, pair by pair, the order of the two alternating."""
    for _ in range(3):
        candidate(**inputs)
        reference(**inputs)
    ratios = []
    for pair in range(pairs):
        if pair % 2:
            ours = seconds(candidate, inputs)
            ratios.append(ours / seconds(reference, inputs))
        else:
            theirs = seconds(reference, inputs)
            ratios.append(seconds(candidate, inputs) / theirs)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bridge", action="append")
    parser.add_argument("--model", default="codegen-350M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    source = resolve(arguments.model)
    window = Window(source)
    window.show(0)
    setting = Setting(dtype, torch.device("cpu"), source.config.rotary_dim)
    reference = window.model(setting).transformer.h[0].attn
    print(f"{arguments.model}, {arguments.dtype}, {arguments.threads} threads, {arguments.pairs} pairs, no_grad, eval")
    print(f"{'candidate':<18}{'shape':>10}{'ratio':>8}{'quartiles':>16}  same bits")
    for name in arguments.bridge or ["cgverify", "transformer_lens"]:
        candidate = find(name).boot(window.model(setting)).blocks[0].attn
        for batch, seq in SHAPES:
            inputs = candidate.get_random_inputs(batch, seq, dtype=dtype)
            with torch.no_grad():
                same = torch.equal(candidate(**inputs)[0], reference(**inputs)[0])
                ratios = paired_ratios(candidate, reference, inputs, arguments.pairs)
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(f"{name:<18}{f'{batch}x{seq}':>10}{middle:>8.2f}{f'{low:.2f} to {high:.2f}':>16}  {same}", flush=True)


if __name__ == "__main__":
    main()
