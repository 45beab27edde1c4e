"""The order in which reports show the cells of a run that kept no plan, as older ones did not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cgverify.common.records import Cell, CellResult, Run
from cgverify.plan.cells import AFTER, BEFORE, CASE_KINDS, DEVICES, DTYPES, PER_LAYER


def in_report_order(run: Run, results: Iterable[CellResult]) -> list[CellResult]:
    """Sort results as the plan does (`cgverify.plan.cells.cells`), with the axes in the order of the run."""
    axes = {
        "candidate": _asked(run, "candidates"),
        "dtype": _asked(run, "dtypes") or DTYPES,
        "device": _asked(run, "devices") or DEVICES,
        "rotary_dim": _asked(run, "rotary_dims"),
        "case": _asked(run, "cases") or tuple(CASE_KINDS),
        "seed": _asked(run, "seeds"),
    }

    def key(result: CellResult) -> tuple[object, ...]:
        cell = result.cell
        place = {axis: _place(getattr(cell, axis), order) for axis, order in axes.items()}
        setting = (place[axis] for axis in ("candidate", "dtype", "device", "rotary_dim"))
        return (cell.model, cell.weights, *setting, _component(cell), place["case"], place["seed"])

    return sorted(results, key=key)


def _asked(run: Run, axis: str) -> Sequence[object]:
    asked = run.settings.get(axis)
    return asked if isinstance(asked, list | tuple) else ()


def _place(value: object, order: Sequence[object]) -> tuple[int, int, str]:
    """Where a value stands; those that the order does not know come last, numbers by size and before names."""
    known = order.index(value) if value in order else len(order)
    return known, value if isinstance(value, int) else 1 << 62, str(value)


def _component(cell: Cell) -> tuple[int, int, tuple[int, int, str]]:
    if cell.layer is not None:
        return 1, cell.layer, _place(cell.kind, PER_LAYER)
    return (0, 0, _place(cell.kind, BEFORE)) if cell.kind in BEFORE else (2, 0, _place(cell.kind, AFTER))
