"""What a run takes on this machine, and whether its checkpoints have room here, each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cgverify.checkpoint.config import shape_of
from cgverify.checkpoint.source import Source
from cgverify.common.records import Cell, Checkpoint
from cgverify.plan.cells import CheckpointAxes, cells, checkpoint_shape
from cgverify.plan.cost.estimate import START, Estimate, estimate, measured_speed, seconds_of
from cgverify.plan.cost.fit import require_fits


def forecast(sources: Mapping[str, Source], planned: Sequence[Cell], jobs: int = 1) -> Estimate:
    """Memory and time of a run on this machine, all processes together.

    Args:
        sources: by digest, those that can be read.
        planned: cells; those of other checkpoints cost nothing.
    """
    peak, seconds = 0, 0.0
    for digest, source in sources.items():
        own = [cell for cell in planned if cell.weights == digest]
        shape = shape_of(source.config)
        peak = max(peak, estimate(shape, own, source.stored_width).peak_bytes)
        seconds += seconds_of(shape, own)
    return Estimate(jobs * peak, START + measured_speed() * seconds / jobs)


def require_room(request: CheckpointAxes, checkpoint: Checkpoint, source: Source, available: int) -> None:
    """Raise MemoryShortError for a request that cannot fit, with what would."""
    shape, width = shape_of(source.config), source.stored_width
    require_fits(
        request.axes,
        lambda axes: estimate(shape, cells(checkpoint_shape(checkpoint), axes, checkpoint.prompt), width).peak_bytes,
        available,
    )


def without_room(sources: Mapping[str, Source], planned: Sequence[Cell], available: int) -> dict[str, str]:
    """By digest: why a checkpoint of a plan does not fit into the memory that can be had."""
    problems = {}
    for digest, source in sources.items():
        own = [cell for cell in planned if cell.weights == digest]
        peak = estimate(shape_of(source.config), own, source.stored_width).peak_bytes
        if peak > available:
            problems[digest] = (
                f"it needs about {peak / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB can be had: run it where "
                "there is more, with fewer --jobs, or give it fewer dtypes and cases."
            )
    return problems
