"""Hold every stage of every side against its oracle.

Cells that were observed together are checked together: a weight is read once for all the inputs that met it, and where
both sides agree bit for bit on a tap and on all that it comes from, one answer serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch

from cgverify.common.records import Cell, Finding
from cgverify.observe.bits import same_tensor
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions, Substitute
from cgverify.observe.stages import Stage, TapFunction, expect_products
from cgverify.observe.taps import Observation
from cgverify.oracle.arithmetic import Expected, bound_after_rounding
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import Worst, errors, worst_ratio
from cgverify.verification.trusted_bits import Precision


@dataclass
class Checked:
    """What one stage of one side came to, put together from blocks of columns."""

    dtype: torch.dtype
    precision: Precision
    r: float = 0.0
    index: int = 0
    error: float = 0.0
    """The greatest absolute one."""

    @property
    def error_seen(self) -> float:
        """The same among elements that the attention mask lets be seen: the lowest value of a mask has errors of 1e30.

        Infinite where anything is that is infinite, a wrong shape too.
        """
        return self.error if math.isinf(self.error) else float(self.precision.errors.max())

    def add(self, worst: Worst, index: int, error: float) -> None:
        if worst.value > self.r:
            self.r, self.index = worst.value, index
        self.error = max(self.error, error)


@dataclass
class Side:
    """One forward of one side: what it was given, what it showed, and how its stages came out."""

    observation: Observation
    view: Mapping[str, torch.Tensor]
    checked: dict[int, Checked] = field(default_factory=dict)
    """By the stage's place in the component's list."""
    read: dict[int, list[str]] = field(default_factory=dict)
    """The names that a stage's answer came from, likewise."""


@dataclass(frozen=True)
class ObservedStep:
    """One forward of both sides, with the stages that it is judged by."""

    name: str
    stages: tuple[Stage, ...]
    reference: Side
    candidate: Side
    conditions: Conditions


@dataclass(frozen=True)
class ElapsedSeconds:
    """Seconds that the forwards of a cell took, with what it takes to tap them."""

    started: float
    """By `time.perf_counter`."""
    candidate: float
    reference: float
    """0 where another candidate's cell had run it already."""


@dataclass
class ObservedCell:
    """A cell that has been run and waits to be judged."""

    cell: Cell
    component: Component
    steps: list[ObservedStep]
    again: Callable[[ObservedStep, Substitute], ObservedStep | None]
    """One of the steps once more, with another tensor at a tap of the candidate; None if it did not get there."""
    spent: ElapsedSeconds
    beside: tuple[Finding, ...] = ()
    """What was found that is about no stage."""


Question = tuple[Side, int, Stage, str]
"""A side, a stage with its place, and the name of the product's input."""

Factor = tuple[str, torch.dtype | None]
"""A weight's name, and what autocast rounds it to."""


def check_stages(steps: Iterable[ObservedStep], parameters: Parameters) -> None:
    """Fill in `Side.checked` of both sides of every step."""
    products: dict[Factor, list[Question]] = {}
    agreeing: list[tuple[Side, Side, int]] = []
    for step in steps:
        reference, candidate = step.reference, step.candidate
        if reference.observation.raised is not None:
            continue
        for place, stage in enumerate(step.stages):
            reads = _question(reference, place, stage, parameters, products)
            # Where both sides agree bit for bit on the tap and on all that it comes from, one answer serves both.
            if reads is not None and _agree(reference, candidate, (stage.tap, *reads)):
                agreeing.append((reference, candidate, place))
            else:
                _question(candidate, place, stage, parameters, products)
    for (weight, autocast), questions in products.items():
        inputs = [side.view[name] for side, _, _, name in questions]
        for columns, answers in expect_products(inputs, weight, parameters, autocast):
            for (side, place, stage, _), answer in zip(questions, answers, strict=True):
                _check(side, place, stage, answer, columns)
    for reference, candidate, place in agreeing:
        if place in reference.checked:
            candidate.checked[place] = reference.checked[place]


def _question(
    side: Side, place: int, stage: Stage, parameters: Parameters, products: dict[Factor, list[Question]]
) -> list[str] | None:
    """Check a stage of a side, or put it on the list of its weight; returns the names that the answer comes from."""
    if stage.tap not in side.view:
        return None
    if place in side.checked:  # a reference that an earlier candidate stood beside
        return side.read[place]
    if isinstance(stage.oracle, TapFunction):
        answer, side.read[place] = stage.oracle.expect(side.view, parameters)
        _check(side, place, stage, answer)
    else:
        side.read[place] = [stage.oracle.input]
        if stage.oracle.input in side.view:
            factor = stage.oracle.weight, stage.oracle.autocast
            products.setdefault(factor, []).append((side, place, stage, stage.oracle.input))
    return side.read[place]


def _agree(reference: Side, candidate: Side, names: Iterable[str]) -> bool:
    return all(
        name in candidate.view and same_tensor(reference.view[name], candidate.view[name])
        for name in names
        if name in reference.view
    )


def _check(side: Side, place: int, stage: Stage, answer: Expected | None, columns: slice | None = None) -> None:
    """Hold a tap, or some columns of it seen as a matrix, against what it must be."""
    if answer is None:
        return
    tap = side.view[stage.tap]
    if tap.dtype != answer.dtype and tap.is_floating_point():
        # Seen after a cast (a candidate's wrong dtype is found elsewhere): one more rounding.
        answer = Expected(answer.value, bound_after_rounding(answer.value, answer.bound, tap.dtype), answer.dtype)
    checked = side.checked.get(place)
    if checked is None:
        checked = side.checked[place] = Checked(answer.dtype, Precision(_heads(stage, tap)))
    width = answer.value.shape[-1]
    if columns is None:
        part, first, stride = tap, 0, width
        right_shape = tap.shape == answer.value.shape
    else:
        rows = answer.value.shape[0]
        right_shape = rows > 0 and tap.numel() % rows == 0 and tap.numel() // rows >= columns.stop
        part = tap.reshape(rows, -1)[:, columns] if right_shape else tap
        first, stride = columns.start, tap.numel() // max(rows, 1)
    if not right_shape:
        checked.add(Worst(math.inf, 0), 0, math.inf)
        return
    error = errors(part, answer)
    worst = worst_ratio(error, answer)
    row, column = divmod(worst.index, width) if width else (0, 0)
    checked.add(worst, row * stride + first + column, float(error.max()) if error.numel() else 0.0)
    _measure(checked.precision, stage, side.view, error.reshape(answer.value.shape), answer.value.abs(), columns)


def visible(stage: Stage, view: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Which elements of a tap the attention mask lets be seen, broadcastable to it; None where all count."""
    mask = view.get("given.attention_mask") if stage.masked else None
    if mask is None or mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min


def _heads(stage: Stage, tap: torch.Tensor) -> int:
    return tap.shape[stage.axes.index("head")] if "head" in stage.axes and tap.dim() == len(stage.axes) else 1


def _measure(
    precision: Precision,
    stage: Stage,
    view: Mapping[str, torch.Tensor],
    error: torch.Tensor,
    value: torch.Tensor,
    columns: slice | None,
) -> None:
    """Take errors and absolute values, in the tap's shape or as a matrix of some of its columns, into its precision."""
    if not error.numel():
        return
    seen = visible(stage, view)
    if seen is not None:  # a mask's lowest value would dwarf every score
        error, value = error.masked_fill(~seen, 0), value.masked_fill(~seen, 0)
    if columns is not None:
        width = view[stage.tap].numel() // len(error) // precision.heads
        head = torch.arange(columns.start, columns.stop) // width
        error, value = error.amax(0), value.amax(0)
    elif precision.heads > 1:
        axis = stage.axes.index("head")
        others = [other for other in range(error.dim()) if other != axis]
        head = torch.arange(precision.heads)
        error, value = error.amax(others), value.amax(others)
    else:
        head = torch.zeros(1, dtype=torch.int64)
        error, value = error.max().reshape(1), value.max().reshape(1)
    precision.add(error, value.nan_to_num(nan=0.0), head)
