"""How fast this machine multiplies matrices, and how much of that a component needs."""

from __future__ import annotations

import timeit
from collections.abc import Callable

import torch
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode

SIZE = 1024
TRIALS = 12


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a square matrix product: the best of some trials, which is what the machine can do."""
    left, right = (torch.randn(SIZE, SIZE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    best = min(timeit.Timer(lambda: torch.mm(left, right, out=out), timer=timer).repeat(TRIALS, number=1))
    return float(2 * SIZE**3 / best)


def product_flops(run: Callable[[], object]) -> int:
    """FLOPs of all matrix products in a call, gradients' among them, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    flops: int = counter.get_total_flops()
    return flops
