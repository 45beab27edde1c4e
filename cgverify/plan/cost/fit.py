"""Whether a run fits into memory, and if not, which options would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from cgverify.common.errors import MemoryShortError, UsageError
from cgverify.common.records import Checkpoint
from cgverify.plan.axes import Axes
from cgverify.plan.cells import cells
from cgverify.plan.cost.memory import peak_bytes

SMALLER: dict[str, Callable[[Axes], dict[str, object]]] = {
    "--dtype bfloat16": lambda _: {"dtypes": ["bfloat16"]},
    "--case default": lambda _: {"cases": ["default"]},
    "--seq-len 8": lambda axes: {"seq_len": min(8, axes.seq_len)},
    "--batch-size 1": lambda _: {"batch_size": 1},
    "--component 'blocks.*'": lambda _: {"components": ["blocks.*"]},
}
"""The changes of the axes that take less memory, by the option that makes them."""


def require_room(axes: Axes, checkpoint: Checkpoint, stored_width: int, available: int) -> None:
    """Raise MemoryShortError for cells of one checkpoint that do not fit, with the options that would make them fit.

    Args:
        stored_width: bytes of a weight as it is stored.
        available: bytes that may be taken.
    """
    require_fits(axes, lambda axes: peak_bytes(checkpoint, cells(checkpoint, axes), stored_width), available)


def without_room(peaks: Mapping[str, int], available: int) -> dict[str, str]:
    """Return why a checkpoint does not fit, by digest, for those that do not.

    Args:
        peaks: estimated bytes of each checkpoint's cells, by digest.
        available: bytes that may be taken.
    """
    return {
        digest: f"it needs about {peak / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available: run it "
        "where there is more, with fewer --jobs, or give it fewer dtypes and cases."
        for digest, peak in peaks.items()
        if peak > available
    }


def require_fits(axes: Axes, peak_of: Callable[[Axes], int], available: int) -> None:
    """Raise MemoryShortError for a run that does not fit, with the options that would make it fit.

    Args:
        peak_of: estimates the bytes of a run with other axes.
        available: bytes that may be taken.
    """
    needed = peak_of(axes)
    if needed <= available:
        return
    raise MemoryShortError(
        f"This run needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available: "
        f"{_what_fits(axes, peak_of, available)}."
    )


def _what_fits(axes: Axes, peak_of: Callable[[Axes], int], available: int) -> str:
    """Return each option that suffices alone, or else the first options that suffice together."""

    def peak(axes: Axes) -> float:
        try:
            return peak_of(axes)
        except UsageError:  # the cases that were asked for are not for these components
            return math.inf

    alone = [option for option, change in SMALLER.items() if peak(axes.model_copy(update=change(axes))) <= available]
    if alone:
        return f"it would fit with {' or with '.join(alone)}"
    needed, together = peak(axes), []
    for option, change in SMALLER.items():
        changed = axes.model_copy(update=change(axes))
        if peak(changed) < needed:
            axes, needed = changed, peak(changed)
            together.append(option)
        if needed <= available:
            return f"it would fit with {' '.join(together)}"
    return f"no option makes it fit, the least is about {needed / 1e9:.1f} GB"
