"""What a run will take, told before it starts.

Memory is that of the largest view of the window in its largest setting, never of the whole checkpoint:

    peak = libraries + weights + taps + scratch

    weights    P·stored + P·width (unless stored so) + P·width + 6·d²·width:
               as read, the reference's, the candidate's, and Q, K, V split from the fused weight for both
    taps       what was observed of both sides is kept until the cells of a view are judged
    scratch    float64 values and bounds of the largest tap, while it is judged

Time is what forwards take at any width, and what each weight takes whenever it is met:

    seconds = start + speed · Σ_views ( P·read + Σ_settings ( P·judge + Σ_cells cell ) )
    cell    = steps · (fixed + P'·(met + rows·product))

P are the weights in view, P' those that a kind of component uses. The constants were fitted to whole runs on the
machine of docs/scale.md; `speed` compares this machine with that one by the time of one product. Memory is meant to be
an upper figure; of time, expect half to twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from cgverify.checkpoint.names import Architecture
from cgverify.common.records import Cell
from cgverify.plan.cells import DECODED_TOKENS, FORCED_TOKENS, WHOLE

LIBRARIES = 620_000_000
"""Bytes that Python, torch, transformers and TransformerLens take, with buffers and findings."""

START = 6.5
"""Seconds of their imports, and of the report."""

READ, JUDGE, MET, PRODUCT = 3e-9, 14e-9, 1.7e-9, 9e-11
"""Seconds for a weight: drawn or read, and copied; upcast and multiplied by the oracle; met by both sides' forwards;
multiplied with one row more."""

FIXED = {"attn": 0.015, "block": 0.02, "mlp": 0.007}
"""Seconds of a step of both sides, and its judgement, at any width; 0.004 for other kinds."""

USED = {"ln1": 0.0, "attn": 1 / 3, "attn.o": 1 / 12, "mlp": 2 / 3, "mlp.in": 1 / 3, "mlp.out": 1 / 3}
"""The share of a block's weights that a kind uses; q, k and v a quarter, since Hugging Face computes them together."""

LINEAR_TAPS = {"attn": 40, "block": 78, "mlp": 24, "mlp.in": 10, "mlp.out": 10}
"""Rows of n_embd numbers that both sides show of a token in one step; 6 for other kinds."""

SQUARE_TAPS = 12
"""Numbers that both sides show for a pair of tokens and a head in one step of attention or block: scores, pattern,
returned pattern, mask, and copies of them."""

SCRATCH = 8
"""Arrays in float64 of the largest tap's size, while it is judged."""

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class CaseCost:
    """What sets a case apart."""

    steps: int = 1
    """Forwards whose taps are kept."""
    fixed: float = 0.0
    """Seconds more for a cell."""
    per_weight: float = 0.0
    """Seconds more for each weight that a cell uses."""
    float64_copies: float = 0.0
    """Of the weights, that the oracle holds."""
    head_taps: int = 0
    """Rows of n_embd numbers that the candidate shows of a token and a head."""


COSTS = {
    "decode": CaseCost(steps=3),
    "gated": CaseCost(steps=3, head_taps=15),
    "patched": CaseCost(steps=25),
    "autocast": CaseCost(steps=4),
    "model": CaseCost(steps=1 + FORCED_TOKENS),
    "backward": CaseCost(fixed=0.3, per_weight=900e-9, float64_copies=12.0),
}


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    peak_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"about {self.peak_bytes / 1e9:.1f} GB and {duration(self.seconds)}"


def estimate(shape: Architecture, cells: Iterable[Cell], stored_width: int = 4, speed: float = 1.0) -> Estimate:
    """Of the cells of a plan.

    Args:
        stored_width: bytes of a weight as it is stored.
        speed: how many times as long this machine takes as the one of the constants.
    """
    planned = list(cells)
    peak = 0
    for in_setting in _grouped(planned, lambda cell: (_view(cell), cell.dtype, cell.device, cell.rotary_dim)):
        if in_setting[0].kind not in WHOLE:  # which is booted only where it fits
            peak = max(peak, _held(shape, weights_in_view(shape, in_setting[0]), in_setting, stored_width))
    return Estimate(LIBRARIES + peak, START + speed * seconds_of(shape, planned))


def seconds_of(shape: Architecture, cells: Iterable[Cell]) -> float:
    """What cells of one checkpoint take on the machine of the constants, imports and report apart."""
    seconds = 0.0
    for in_view in _grouped(cells, _view):
        weights = weights_in_view(shape, in_view[0])
        seconds += weights * READ
        for in_setting in _grouped(in_view, lambda cell: (cell.dtype, cell.device, cell.rotary_dim)):
            candidates = len({cell.candidate for cell in in_setting})
            seconds += candidates * weights * JUDGE + sum(_seconds(weights, cell) for cell in in_setting)
    return seconds


def measured_speed() -> float:
    """How many times as long this machine takes for products as the one of the constants.

    A weight is upcast and multiplied, as the oracle does with it, but by numpy, which is quick to import: 0.1 s in all.
    """
    rows, weight = np.ones((48, 1024)), np.ones((1024, 1024), dtype=np.float32)
    times = []
    for _ in range(30):  # the quickest of many: a machine that is shared is not slow
        started = time.perf_counter()
        rows @ weight.astype(np.float64).T
        times.append(time.perf_counter() - started)
    return min(times) / SECONDS_OF_ONE


SECONDS_OF_ONE = 2.1e-3
"""What that takes on the machine of the constants."""


def duration(seconds: float) -> str:
    """`40 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], Hashable]) -> Iterable[list[Cell]]:
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups.values()


def _view(cell: Cell) -> tuple[Hashable, bool]:
    """What a cell has in view; a prompt's cells have it once more, by themselves."""
    return cell.kind if cell.layer is None else cell.layer, bool(cell.prompt)


def weights_in_view(shape: Architecture, cell: Cell) -> int:
    """How many numbers the view of a cell has."""
    if cell.layer is not None:
        return shape.block_parameters
    if cell.kind in WHOLE:
        return shape.n_layer * shape.block_parameters + 2 * shape.vocab_size * shape.n_embd
    return 2 * shape.n_embd if cell.kind == "ln_final" else shape.vocab_size * shape.n_embd


def _held(shape: Architecture, weights: int, cells: list[Cell], stored_width: int) -> int:
    """Bytes of one view in one setting, beside the libraries."""
    first = cells[0]
    width = WIDTHS[first.dtype]
    held = weights * stored_width
    if first.device == "cpu":  # elsewhere the copies are in that device's memory
        held += weights * (width if width == stored_width else 2 * width)
        held += 6 * shape.n_embd**2 * width if first.layer is not None else 0
    held += int(8 * weights * max(_cost(cell).float64_copies for cell in cells))
    taps = sum(_taps(shape, cell) for cell in cells) // len({cell.candidate for cell in cells})
    return held + taps + 8 * SCRATCH * max(_largest_tap(shape, cell) for cell in cells)


def _taps(shape: Architecture, cell: Cell) -> int:
    """Bytes of what both sides of a cell show."""
    rows, cost = _rows(cell), _cost(cell)
    width = shape.vocab_size if cell.kind == "unembed" else shape.n_embd
    numbers = LINEAR_TAPS.get(cell.kind, 6) * rows * width * cost.steps
    if cell.kind in ("attn", "block"):
        numbers += SQUARE_TAPS * shape.n_head * rows * cell.seq_len * cost.steps
        numbers += cost.head_taps * shape.n_head * rows * shape.n_embd
    return 4 * numbers


def _largest_tap(shape: Architecture, cell: Cell) -> int:
    """Numbers; a product's are judged some columns at a time."""
    by_head = max(cell.seq_len, shape.n_embd if _cost(cell).head_taps else 0)
    attends = cell.kind in ("attn", "block")
    return _rows(cell) * max(shape.n_embd, shape.n_head * by_head if attends else 0)


def _seconds(weights: int, cell: Cell) -> float:
    cost = _cost(cell)
    used = weights * (USED.get(cell.kind, 1 / 4) if cell.layer is not None and cell.kind != "block" else 1.0)
    step = FIXED.get(cell.kind, 0.004) + used * (MET + PRODUCT * _rows(cell))
    return cost.steps * step + cost.fixed + cost.per_weight * used


def _rows(cell: Cell) -> int:
    return cell.batch_size * (cell.seq_len + (DECODED_TOKENS if cell.case == "decode" else 0))


def _cost(cell: Cell) -> CaseCost:
    return COSTS.get(cell.case, CaseCost())
