"""What a run will take on this machine, and whether it can have it."""

from __future__ import annotations

from cgverify.checkpoint.config import shape_of
from cgverify.checkpoint.source import Source
from cgverify.cost.estimate import Estimate, estimate, measured_speed
from cgverify.cost.fit import require_fits
from cgverify.cost.memory import available, taken
from cgverify.plan import Axes, Subject, cells


def forecast(source: Source, subject: Subject, axes: Axes) -> Estimate:
    """Memory and time of a run, before it starts.

    Raises:
        MemoryShortError: it cannot fit into the memory that this process may still take.
    """
    shape, width = shape_of(source.config), source.stored_width
    require_fits(axes, lambda other: estimate(shape, cells(subject, other), width).peak_bytes, available() + taken())
    return estimate(shape, cells(subject, axes), width, measured_speed())
