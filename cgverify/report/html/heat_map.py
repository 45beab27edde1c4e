"""The heat map: the worst verdict of each tap by layer, and by every other axis along which a run varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.report.outcome import every_finding

AXES = ("model", "candidate", "dtype", "device", "rotary_dim", "attention", "case")
"""The axes of the map next to the layers. Those along which a run has only one value are left out, except these:"""
ALWAYS_SHOWN = ("dtype", "case")
IN_A_BLOCK = ("ln1", "attn", "mlp")

AxisValues = tuple[str, ...]
"""A value for each axis that is shown."""


@dataclass(frozen=True)
class Worst:
    """A verdict with its r, and the values and the layer where it was found."""

    verdict: Verdict
    r: float | None
    values: AxisValues
    layer: int | None

    @property
    def rank(self) -> tuple[int, float]:
        return self.verdict.severity, -1.0 if self.r is None else self.r


@dataclass(frozen=True)
class Axis:
    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class HeatMap:
    """The worst of every tap for each layer and each combination of the other axes."""

    sections: dict[str, list[str]]
    """The taps of each component or of a part of a block, in the order of the computation."""
    layers: tuple[int | None, ...]
    """In order. None comes first; it is for components outside the layers."""
    axes: tuple[Axis, ...]
    worst: dict[str, dict[tuple[AxisValues, int | None], Worst]]
    """By tap."""

    def width(self) -> int:
        """Return the number of squares in a row."""
        return len(self.layers) + sum(len(axis.values) for axis in self.axes)

    def by_layer(self, tap: str) -> list[Worst | None]:
        """Return the worst of a tap in each of `layers`, over all other axes."""
        return self._by_column(tap, self.layers, lambda worst: worst.layer)

    def by_value(self, tap: str, axis: Axis) -> list[Worst | None]:
        """Return the worst of a tap at each value of an axis, over all layers and the other axes."""
        number = self.axes.index(axis)
        return self._by_column(tap, axis.values, lambda worst: worst.values[number])

    def _by_column(self, tap: str, columns: Sequence[Any], column_of: Callable[[Worst], Any]) -> list[Worst | None]:
        kept: dict[Any, Worst] = {}
        for worst in self.worst[tap].values():
            keep_worst(kept, column_of(worst), worst)
        return [kept.get(column) for column in columns]

    def packed(self) -> dict[str, Any]:
        """Return the map as short JSON for the page's filters.

        A group is `[row, [value of each axis], severities, figures]`, with a digit and an r for each of `layers`; a dot
        and null if there is none. Infinity is a string.
        """
        groups: dict[tuple[int, AxisValues], dict[int | None, Worst]] = {}
        for number, tap in enumerate(chain(*self.sections.values())):
            for (values, layer), worst in self.worst[tap].items():
                groups.setdefault((number, values), {})[layer] = worst
        return {
            "layers": self.layers,
            "axes": [[axis.name, axis.values] for axis in self.axes],
            "groups": [
                [
                    number,
                    [axis.values.index(value) for axis, value in zip(self.axes, values, strict=True)],
                    "".join(str(own[layer].verdict.severity) if layer in own else "." for layer in self.layers),
                    [_short(own[layer].r) if layer in own else None for layer in self.layers],
                ]
                for (number, values), own in groups.items()
            ],
        }


def heat_map(run: Run, results: Sequence[CellResult]) -> HeatMap:
    """Return the map of a run. A tap of a component is one row, whether it was verified alone or in its block."""
    axes = tuple(
        Axis(name, values)
        for name, values in values_by_axis(run, results).items()
        if len(values) > 1 or name in ALWAYS_SHOWN
    )
    kept: dict[str, dict[tuple[AxisValues, int | None], Worst]] = {}
    sections: dict[str, list[str]] = {}
    for cell, finding in every_finding(results):
        if not finding.tap:
            continue
        tap = tap_name(cell, finding)
        if tap not in kept:
            sections.setdefault(_section(cell, finding), []).append(tap)
        worst = Worst(finding.verdict, finding.r, axis_values(cell, axes), cell.layer)
        keep_worst(kept.setdefault(tap, {}), (worst.values, cell.layer), worst)
    layers = {result.cell.layer for result in results}
    return HeatMap(
        sections=sections,
        layers=tuple(sorted(layers, key=lambda layer: -1 if layer is None else layer)),
        axes=axes,
        worst=kept,
    )


def keep_worst(kept: dict[Any, Worst], key: Any, worst: Worst) -> None:
    if key not in kept or worst.rank > kept[key].rank:
        kept[key] = worst


def values_by_axis(run: Run, results: Sequence[CellResult]) -> dict[str, tuple[str, ...]]:
    """Return the values that the cells have on each axis: first those of the settings, in their order."""
    values = {}
    for name in AXES:
        requested = run.settings.get(f"{name}s")
        present = dict.fromkeys(str(getattr(result.cell, name)) for result in results)
        wanted = [str(value) for value in requested] if isinstance(requested, list) else []
        values[name] = tuple(dict.fromkeys([*(value for value in wanted if value in present), *present]))
    return values


def axis_values(cell: Cell, axes: Sequence[Axis]) -> AxisValues:
    return tuple(str(getattr(cell, axis.name)) for axis in axes)


def tap_name(cell: Cell, finding: Finding) -> str:
    """Return a tap's name in the block: `attn.hook_z` for attention that was verified alone or in its block."""
    return finding.tap if cell.kind == "block" else f"{cell.kind}.{finding.tap}"


def _section(cell: Cell, finding: Finding) -> str:
    """Return the component, or its parent, to which a tap belongs."""
    owner = (finding.tap if cell.kind == "block" else cell.kind).split(".")[0]
    return owner if cell.kind != "block" or owner in IN_A_BLOCK else "block"


def _short(r: float | None) -> float | str | None:
    """Round to three digits. JavaScript's Number() reads infinity from a string."""
    if r is None:
        return None
    return "Infinity" if r == float("inf") else float(f"{r:.3g}")
