"""What a plan costs, estimated before it is run.

The time of a unit (cells that share weights in one setting) is taken to be

    VIEW + READ · P + Σ over its cells (seconds + nanoseconds · P)        P: parameters in view

with the figures below, of one thread. They were measured on a layer of codegen-nano and one of codegen-350M, at 2×8
tokens, on one core of a shared AMD EPYC machine (torch 2.13); other machines differ by a factor, and the proportions
hold. At such sizes weights are passed over and little is multiplied, so tokens do not count; from some hundred on they
do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cgverify.execute.size import parameters
from cgverify.execute.work import Unit

VIEW = 0.05
READ = 15e-9

CELL = {
    "default": (0.017, 2),
    "stress": (0.018, 2),
    "decode": (0.11, 10),
    "masked_row": (0.043, 5),
    "train": (0.05, 3),
    "cast_table": (0.042, 3),
    "gated": (0.14, 20),
    "patched": (0.23, 55),
    "backward": (0.29, 1900),
}
"""Of each case: seconds of a cell whatever its size, and nanoseconds a parameter in view."""

UNMEASURED = (0.1, 20)
"""For any other case."""


@dataclass(frozen=True)
class Cost:
    """Of a plan."""

    seconds: float
    """Of one thread, all units one after another."""
    longest: float
    """The largest unit's: no number of workers is done sooner."""
    read_bytes: int
    """Of weights in float32, if each view is read once."""
    unknown: tuple[str, ...]
    """Checkpoints of which not even the shape is known here."""


def cost(units: Iterable[Unit]) -> Cost:
    """What all units cost together."""
    planned = list(units)
    each = [seconds(unit) for unit in planned]
    views = {unit.in_view: parameters(unit) for unit in planned}
    unknown = dict.fromkeys(unit.checkpoint.asked for unit in planned if not unit.checkpoint.n_layers)
    return Cost(sum(each), max(each, default=0.0), 4 * sum(views.values()), tuple(unknown))


def seconds(unit: Unit) -> float:
    """Of one unit."""
    size = parameters(unit)
    cells = [CELL.get(cell.case, UNMEASURED) for cell in unit.cells]
    return VIEW + READ * size + sum(fixed + rate * 1e-9 * size for fixed, rate in cells)
