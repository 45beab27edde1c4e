"""Whether a run fits into memory, and if not, what would."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from cgverify.common.errors import MemoryShortError, UsageError
from cgverify.plan.cells import Axes

SMALLER: dict[str, Callable[[Axes], Axes]] = {
    "--dtype bfloat16": lambda axes: replace(axes, dtypes=("bfloat16",)),
    "--case default": lambda axes: replace(axes, cases=("default",)),
    "--seq-len 8": lambda axes: replace(axes, seq_len=min(8, axes.seq_len)),
    "--batch-size 1": lambda axes: replace(axes, batch_size=1),
    "--component 'blocks.*'": lambda axes: replace(axes, components=("blocks.*",)),
}
"""What takes less, by the option that asks for it."""


def require_fits(axes: Axes, peak_of: Callable[[Axes], int], available: int) -> None:
    """Raise MemoryShortError for a run that cannot fit, with what would.

    Args:
        peak_of: estimated bytes of a run of other axes.
        available: bytes that may be taken.
    """
    needed = peak_of(axes)
    if needed <= available:
        return
    raise MemoryShortError(
        f"This run needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB can be had: "
        f"{_what_fits(axes, peak_of, available)}."
    )


def _what_fits(axes: Axes, peak_of: Callable[[Axes], int], available: int) -> str:
    """Single options that suffice, else the shortest list of them, in order, that does."""
    alone = [option for option, smaller in SMALLER.items() if _peak(smaller(axes), peak_of) <= available]
    if alone:
        return f"it would fit with {' or with '.join(alone)}"
    needed, together = float(peak_of(axes)), []
    for option, smaller in SMALLER.items():
        less = _peak(smaller(axes), peak_of)
        if less < needed:
            axes, needed = smaller(axes), less
            together.append(option)
        if needed <= available:
            return f"it would fit with {' '.join(together)}"
    return f"no option makes it fit, the least is about {needed / 1e9:.1f} GB"


def _peak(axes: Axes, peak_of: Callable[[Axes], int]) -> float:
    try:
        return peak_of(axes)
    except UsageError:  # the cases that were asked for know no such components
        return math.inf
