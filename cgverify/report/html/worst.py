"""The worst that was found at each tap: by layer, and by whatever else varies between the cells of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from cgverify.common.records import Cell, CellResult, Finding, Run, Verdict

AXES = ("model", "candidate", "dtype", "device", "rotary_dim", "case")
"""What a setting is made of. An axis along which a run has one value only is left out, except for these:"""
ALWAYS_SHOWN = ("dtype", "case")
IN_A_BLOCK = ("ln1", "attn", "mlp")

Setting = tuple[str, ...]
"""A value for each axis that is shown."""


@dataclass(frozen=True)
class Worst:
    verdict: Verdict
    r: float | None
    setting: Setting
    layer: int | None
    """With the setting: where verdict and r were found."""

    @property
    def rank(self) -> tuple[int, float]:
        return self.verdict.severity, -1.0 if self.r is None else self.r


@dataclass(frozen=True)
class Axis:
    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A tap and the component that it is shown under."""

    section: str
    tap: str

    @property
    def label(self) -> str:
        return self.tap.removeprefix(f"{self.section}.")


@dataclass(frozen=True)
class Overview:
    """The worst of every tap in every layer and setting."""

    rows: tuple[Row, ...]
    """Taps in the order of the computation, those of one section together."""
    layers: tuple[int | None, ...]
    """In order; None, for what stands outside the layers, comes first."""
    axes: tuple[Axis, ...]
    spots: dict[str, dict[tuple[Setting, int | None], Worst]]
    """By tap."""

    def sections(self) -> list[tuple[str, list[Row]]]:
        """The rows of each component."""
        return [(section, list(rows)) for section, rows in groupby(self.rows, key=lambda row: row.section)]

    def width(self) -> int:
        """How many squares a row has room for."""
        return len(self.layers) + sum(len(axis.values) for axis in self.axes)

    def by_layer(self, row: Row) -> list[Worst | None]:
        """The worst of a tap in each of `layers`, over all settings."""
        return self._worst_of(row, self.layers, lambda spot: spot.layer)

    def by_value(self, row: Row, axis: Axis) -> list[Worst | None]:
        """The worst of a tap at each value of an axis, over all layers and the other axes."""
        place = self.axes.index(axis)
        return self._worst_of(row, axis.values, lambda spot: spot.setting[place])

    def _worst_of(self, row: Row, columns: Sequence[Any], column_of: Callable[[Worst], Any]) -> list[Worst | None]:
        worst: dict[Any, Worst] = {}
        for spot in self.spots[row.tap].values():
            keep_worst(worst, column_of(spot), spot)
        return [worst.get(column) for column in columns]

    def packed(self) -> dict[str, Any]:
        """The same as short JSON, for the page's filter.

        `groups` holds `[row, [value of each axis], severities, figures]`: a digit and an r for each of `layers`, a dot
        and null where there is none. Infinity is a string.
        """
        groups: dict[tuple[int, Setting], dict[int | None, Worst]] = {}
        for number, row in enumerate(self.rows):
            for (setting, layer), spot in self.spots[row.tap].items():
                groups.setdefault((number, setting), {})[layer] = spot
        return {
            "layers": self.layers,
            "axes": [[axis.name, axis.values] for axis in self.axes],
            "groups": [
                [
                    number,
                    [axis.values.index(value) for axis, value in zip(self.axes, setting, strict=True)],
                    "".join(str(of[layer].verdict.severity) if layer in of else "." for layer in self.layers),
                    [_short(of[layer].r) if layer in of else None for layer in self.layers],
                ]
                for (number, setting), of in groups.items()
            ],
        }


def overview(run: Run, results: Sequence[CellResult]) -> Overview:
    """Whatever was found at a tap of a component by itself and at the same tap in its block is one."""
    shown = shown_axes(run, results)
    spots: dict[str, dict[tuple[Setting, int | None], Worst]] = {}
    sections: dict[str, dict[str, Row]] = {}
    for cell, finding in every_finding(results):
        if not finding.tap:
            continue
        row = Row(section_of(cell, finding), tap_name(cell, finding))
        sections.setdefault(row.section, {}).setdefault(row.tap, row)
        setting = setting_of(cell, shown)
        spot = Worst(finding.verdict, finding.r, setting, cell.layer)
        keep_worst(spots.setdefault(row.tap, {}), (setting, cell.layer), spot)
    layers = {result.cell.layer for result in results}
    return Overview(
        rows=tuple(row for section in sections.values() for row in section.values()),
        layers=tuple(sorted(layers, key=lambda layer: -1 if layer is None else layer)),
        axes=shown,
        spots=spots,
    )


def keep_worst(worst: dict[Any, Worst], key: Any, spot: Worst) -> None:
    if key not in worst or spot.rank > worst[key].rank:
        worst[key] = spot


def every_finding(results: Iterable[CellResult]) -> Iterator[tuple[Cell, Finding]]:
    return ((result.cell, finding) for result in results for finding in result.findings)


def shown_axes(run: Run, results: Sequence[CellResult]) -> tuple[Axis, ...]:
    """The axes along which a run varies, and dtype and case."""
    values = values_by_axis(run, results)
    return tuple(Axis(name, of) for name, of in values.items() if len(of) > 1 or name in ALWAYS_SHOWN)


def values_by_axis(run: Run, results: Sequence[CellResult]) -> dict[str, tuple[str, ...]]:
    """What the cells have of each axis: as it was asked for, and anything else in order of appearance."""
    values = {}
    for name in AXES:
        asked = run.settings.get(f"{name}s")
        present = dict.fromkeys(str(getattr(result.cell, name)) for result in results)
        wanted = [str(value) for value in asked] if isinstance(asked, list) else []
        values[name] = tuple(dict.fromkeys([*(value for value in wanted if value in present), *present]))
    return values


def setting_of(cell: Cell, axes: Sequence[Axis]) -> Setting:
    return tuple(str(getattr(cell, axis.name)) for axis in axes)


def tap_name(cell: Cell, finding: Finding) -> str:
    """Counted from the block: `attn.hook_z` of attention by itself and within its block."""
    return finding.tap if cell.kind == "block" else f"{cell.kind}.{finding.tap}"


def section_of(cell: Cell, finding: Finding) -> str:
    """The component, or its parent, that a tap belongs to."""
    owner = (finding.tap if cell.kind == "block" else cell.kind).split(".")[0]
    return owner if cell.kind != "block" or owner in IN_A_BLOCK else "block"


def _short(r: float | None) -> float | str | None:
    """Three digits; infinity as JavaScript's Number() reads it."""
    if r is None:
        return None
    return "Infinity" if r == float("inf") else float(f"{r:.3g}")
