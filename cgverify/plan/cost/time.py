"""The processor time of a run, estimated before it starts.

    seconds = python · (Σ_views boots·BOOT + Σ_cells forwards·FIXED)
              + products · (Σ_views P·READ + Σ_cells forwards·P'·WEIGHT + sequences · rows · P'·PRODUCT)

P is the number of weights in view, P' the number that a component uses. `python` and `products` are the speed of a
machine, measured before each estimate: of two machines, one may be faster at Python and slower at products. The
constants were fitted to the time of one
thread on the machine of docs/scale.md. There the estimate is 0.6 to 1.3 times the measured time of each case of
codegen-nano, and of a layer of codegen-350M: of its kinds of component, with 8 and 64 tokens, in `patched`, `gated` and
`backward`, and in bfloat16. Other devices are not estimated well.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from cgverify.common.records import Cell, Checkpoint
from cgverify.plan.cases import FORCED_TOKENS, GENERATED_TOKENS, WHOLE
from cgverify.plan.cost.memory import rows, weights_in_view

START = 6.5
"""Seconds of the imports, and of the report."""

READ = 4.1e-9
"""Seconds for a weight that is drawn or read, and copied."""

WEIGHT, PRODUCT = 2.3e-9, 3.0e-10
"""Seconds for a weight in a forward of both sides, and for its product with each row, there and in the oracle."""

FIXED = {"attn": 0.013, "block": 0.019, "mlp": 0.016}
"""Seconds of a forward of both sides, and of judging it, with any width; 0.003 for other kinds."""

USED = {"ln1": 0.0, "attn": 1 / 3, "attn.o": 1 / 12, "mlp": 2 / 3, "mlp.in": 1 / 3, "mlp.out": 1 / 3, "block": 1.0}
"""The share of a block's weights that a kind uses; q, k and v a quarter, since Hugging Face computes them together."""

BOOT = 0.11
"""Seconds to prepare a view in one setting and to boot a candidate over it."""

FIXED_SHARE = {"patched": 0.8, "gated": 1.8, "train": 1.5, "backward": 3.0}
"""The share of FIXED that a forward takes; 1 for other cases. Most forwards of `patched` are the candidate's alone, and
those of `gated` and `train` have more stages. In `backward` the candidate runs three times, and an oracle 17 times."""

MORE_WEIGHT = {"backward": 2900e-9, "weights": 28e-9}
"""Seconds that a case takes in addition, for each weight that a cell uses."""

CALLS = 20
"""The other forwards of a whole model, most of them of one side, or in Monte Carlo arithmetic."""

_PARTS = ("embed", "ln1", "mlp", "ln_final", "unembed")

FORWARDS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "decode": {"attn": (4, 1), "block": (4, 1)},
    "caches": {"attn": (7, 2.6), "block": (7, 2.6)},
    "gated": {"attn": (9, 6), "block": (12, 8)},
    "train": {"attn": (7, 6), "block": (8, 7), "mlp": (2, 2)},
    "patched": {"attn": (79, 53), "block": (59, 36.6), "mlp": (16, 13)}
    | dict.fromkeys(("ln1", "ln_final"), (8, 6))
    | dict.fromkeys(("embed", "unembed"), (4, 3)),
    "autocast": {"attn": (8, 2), "block": (8, 2)}
    | dict.fromkeys(("ln1", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out"), (2, 2))
    | dict.fromkeys(("ln_final", "unembed"), (2, 2)),
    "backward": {"attn": (3, 3), "block": (3, 3)}
    | dict.fromkeys(("ln1", "attn.o", "mlp", "mlp.in", "mlp.out", "ln_final", "unembed"), (2, 2)),
    "model": dict.fromkeys(("embed", "block", "ln_final", "unembed", "model"), (1 + FORCED_TOKENS, 1)),
    "shapes": dict.fromkeys(_PARTS, (3, 1.1)) | {"attn": (10, 1.8), "block": (5, 0.7), "unembed": (3, 0.36)},
    "state": dict.fromkeys(_PARTS, (4, 4)) | dict.fromkeys(("attn", "block"), (8, 6)),
    "data": dict.fromkeys((*_PARTS, *USED, "attn.q", "attn.k", "attn.v"), (2, 3)) | {"attn": (6, 6), "embed": (2, 2)},
    "weights": dict.fromkeys(("embed", "block", "ln_final", "unembed"), (0, 0)),
}
"""The forwards of a case on a kind of component, and the sequences that they take together; 1 and 1 for other cases."""


class Speed(NamedTuple):
    """How many times as long this machine takes as the machine of the constants."""

    python: float = 1.0
    products: float = 1.0


AS_FITTED = Speed()


def seconds_of(checkpoint: Checkpoint, cells: Iterable[Cell], speed: Speed = AS_FITTED) -> float:
    """Return the seconds of cells of one checkpoint, in one thread and without the start."""
    views, boots, seconds = {}, set(), 0.0
    for cell in cells:
        weights = weights_in_view(checkpoint, cell)
        view = cell.kind if cell.layer is None else cell.layer, bool(cell.prompt)
        views[view] = weights
        boots.add((view, cell.candidate, cell.dtype, cell.device, cell.rotary_dim, cell.attention))
        seconds += _seconds_of_cell(checkpoint, weights, cell, speed)
    return seconds + speed.products * READ * sum(views.values()) + speed.python * BOOT * len(boots)


def _seconds_of_cell(checkpoint: Checkpoint, weights: int, cell: Cell, speed: Speed) -> float:
    used = float(weights)
    if cell.layer is not None:
        used *= USED.get(cell.kind, 1 / 4)
    elif cell.kind == "embed":  # rows are looked up, and nothing is multiplied
        used = 0.0
    forwards, sequences = FORWARDS.get(cell.case, {}).get(cell.kind, (1, 1))
    fixed = FIXED.get(cell.kind, 0.003) * FIXED_SHARE.get(cell.case, 1)
    if cell.kind in WHOLE:  # it generates too
        forwards += GENERATED_TOKENS + CALLS
        fixed = FIXED["block"] * checkpoint.n_layers
    products = forwards * WEIGHT + PRODUCT * rows(cell) * sequences + MORE_WEIGHT.get(cell.case, 0.0)
    return speed.python * forwards * fixed + speed.products * products * used


COPY, MULTIPLICATION = 0.5e-3, 1.1e-3
"""Seconds of the two measurements of `measured_speed` on the machine of the constants."""


def measured_speed() -> Speed:
    """Return the speed of this machine, measured in 0.1 s.

    For products, a weight is converted and multiplied as the oracle does it, but with numpy, which is quick to import.
    Each product is so small that OpenBLAS computes it in one thread. A second thread would wait for a processor while
    another process is busy, and the whole took 30 times as long. For Python, nested objects are copied.
    """
    rows, blocks = np.ones((8, 1024)), np.ones((32, 32, 1024), dtype=np.float32)
    objects: list[dict[str, Any]] = [{"name": (number, str(number), [])} for number in range(100)]

    def multiply() -> None:
        for block in blocks:
            rows @ block.astype(np.float64).T

    return Speed(_seconds(lambda: copy.deepcopy(objects)) / COPY, _seconds(multiply) / MULTIPLICATION)


def _seconds(work: Callable[[], object]) -> float:
    """Return the median of the processor seconds of many calls: the clock of a processor changes all the time."""
    times = []
    for _ in range(30):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return median(times)
