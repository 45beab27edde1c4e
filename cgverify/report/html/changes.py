"""What differs between a run and its baseline: verdicts, r, cells, and the place where they were made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cgverify.records import Cell, CellResult, Finding, Run, Verdict
from cgverify.report.html.worst import Axis, setting_of, tap_name

GREW = 2.0
"""r is told of where it grew by more than this factor at an unchanged verdict."""


Pair = tuple[Cell, Finding | None, Finding | None]
"""A cell, and what was found at one of its taps before and now."""


@dataclass(frozen=True)
class Change:
    """A tap whose verdict or r changed in the same way in some cells, told where r is greatest now."""

    tap: str
    setting: tuple[str, ...]
    """A value for each axis but the case."""
    before: Finding | None
    now: Finding | None
    """None where the tap was not seen at all."""
    components: tuple[str, ...]
    cases: tuple[str, ...]
    layers: tuple[int, ...]
    cells: int


@dataclass(frozen=True)
class Changes:
    """A run beside its baseline."""

    created: str
    """When the baseline was made."""
    paired: int
    """Cells that both have."""
    worse: tuple[Change, ...]
    better: tuple[Change, ...]
    grown: tuple[Change, ...]
    appeared: tuple[str, ...]
    vanished: tuple[str, ...]
    environment: tuple[tuple[str, str, str], ...]
    """Name, before, now."""

    @property
    def any(self) -> bool:
        return bool(self.worse or self.better or self.grown or self.appeared or self.vanished or self.environment)


def changes(
    run: Run,
    results: Sequence[CellResult],
    baseline: tuple[Run, Sequence[CellResult]],
    axes: Sequence[Axis],
) -> Changes:
    """Cells are paired by their content, and findings within them by step and tap."""
    before_run, before = baseline
    earlier = {result.cell.id: result for result in before}
    now = {result.cell.id: result for result in results}
    pairs = [
        (result.cell, *both)
        for key, result in now.items()
        if key in earlier
        for both in _by_place(earlier[key], result)
    ]
    return Changes(
        created=before_run.created,
        paired=len(earlier.keys() & now.keys()),
        worse=_gathered((pair for pair in pairs if _severity(pair[2]) > _severity(pair[1])), axes),
        better=_gathered((pair for pair in pairs if _severity(pair[2]) < _severity(pair[1])), axes),
        grown=_gathered((pair for pair in pairs if _grew(*pair[1:])), axes),
        appeared=_named(result.cell for key, result in now.items() if key not in earlier),
        vanished=_named(result.cell for key, result in earlier.items() if key not in now),
        environment=_differences(before_run, run),
    )


def _by_place(before: CellResult, now: CellResult) -> Iterable[tuple[Finding | None, Finding | None]]:
    """What was found at each tap of each step then and now."""
    old, new = _worst_by_place(before), _worst_by_place(now)
    return [(old.get(place), new.get(place)) for place in {**old, **new}]


def _worst_by_place(result: CellResult) -> dict[tuple[str, str], Finding]:
    placed: dict[tuple[str, str], Finding] = {}
    for finding in result.findings:
        place = (finding.step, finding.tap)
        if place not in placed or finding.verdict.severity > placed[place].verdict.severity:
            placed[place] = finding
    return placed


def _severity(finding: Finding | None) -> int:
    """A tap that is not seen ranks behind all that hold: its hook may have stopped firing."""
    return Verdict.UNSUPPORTED.severity if finding is None else finding.verdict.severity


def _grew(before: Finding | None, now: Finding | None) -> bool:
    if before is None or now is None or before.verdict is not now.verdict:
        return False
    return before.r is not None and now.r is not None and now.r > GREW * before.r


def _r(finding: Finding | None) -> float:
    return finding.r if finding is not None and finding.r is not None else 0.0


def _gathered(pairs: Iterable[Pair], axes: Sequence[Axis]) -> tuple[Change, ...]:
    """Pairs that differ in component, layer, case, step or seed only are one change; the greatest r stands first."""
    apart = [axis for axis in axes if axis.name != "case"]
    groups: dict[tuple[object, ...], list[Pair]] = {}
    for cell, before, now in pairs:
        verdicts = (before and before.verdict, now and now.verdict)
        tap = tap_name(cell, now or before)  # type: ignore[arg-type]
        groups.setdefault((tap, setting_of(cell, apart), verdicts), []).append((cell, before, now))
    gathered = []
    for group in groups.values():
        cell, before, now = max(group, key=lambda pair: _r(pair[2]))
        cells = [other for other, _, _ in group]
        gathered.append(
            Change(
                tap=tap_name(cell, now or before),  # type: ignore[arg-type]
                setting=setting_of(cell, apart),
                before=before,
                now=now,
                components=tuple(dict.fromkeys(cell.kind for cell in cells)),
                cases=tuple(dict.fromkeys(cell.case for cell in cells)),
                layers=tuple(sorted({cell.layer for cell in cells if cell.layer is not None})),
                cells=len({cell.id for cell in cells}),
            )
        )
    return tuple(sorted(gathered, key=lambda change: (-_severity(change.now), -_r(change.now))))


def _named(cells: Iterable[Cell]) -> tuple[str, ...]:
    return tuple(
        f"{cell.component} · {cell.candidate} · {cell.dtype} · {cell.device} · rotary_dim {cell.rotary_dim} · "
        f"{cell.case} · seed {cell.seed}"
        for cell in cells
    )


def _differences(before: Run, now: Run) -> tuple[tuple[str, str, str], ...]:
    old, new = _flat(before), _flat(now)
    return tuple(
        (name, old.get(name, "–"), new.get(name, "–")) for name in {**old, **new} if old.get(name) != new.get(name)
    )


def _flat(run: Run) -> dict[str, str]:
    return {f"{part}.{name}": value for part, values in environment(run) for name, value in values}


def environment(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Versions, machine and numerics flags: each part with its names and values."""
    return [
        (part, [(name, str(value)) for name, value in values.items()])
        for part, values in run.environment.items()
        if isinstance(values, dict)
    ]
