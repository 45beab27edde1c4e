"""Why a fault was not caught: it changes no bit, it is below the dtype's resolution, or it was missed.

Computed from the fault's own tensors, never declared. A fault *changes no bit* if, in every probe, it shows the same
taps and does the same beside them as the bridge that it was seeded in. It is *below the resolution* of a dtype if, run
in float64 on the same inputs and weights, rounded to the dtype, it moves no tap of any probe by more than that dtype's
bound: with tap and o those of the fault in float64, B₆₄ what float64 itself may err and B the stage's bound in the
fault's run in the dtype,

    |tap − o| <= B + B₆₄          at every element of every stage
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import nn

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import WeightsView, Window
from cgverify.common.records import Cell
from cgverify.observe import candidate
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import Candidate
from cgverify.observe.inputs import CaseInputs
from cgverify.observe.stages import Stage, TapFunction, expect_products
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.parameters import Parameters
from cgverify.selftest.answer import Outcome
from cgverify.verification.metrics import assess
from cgverify.verification.observe_cell import Reference, observe_cell, variant_of
from cgverify.verification.observed import CandidateFailedError, ObservedCell, ObservedSide, ObservedStep


@dataclass(frozen=True)
class Seen:
    """A cell of one candidate, run and not judged, with the weights of its oracle."""

    observed: ObservedCell
    parameters: Parameters

    @property
    def sides(self) -> list[ObservedSide]:
        """The candidate's, step by step."""
        return [step.candidate for step in self.observed.steps]


def explain(fault: Candidate, cells: Sequence[Cell], source: Source) -> Outcome:
    """Why none of its cells, all of one dtype and device, showed a fault."""
    unseeded = [cell.model_copy(update={"candidate": "cgverify"}) for cell in cells]
    try:
        narrow = list(_run(fault, cells, source))
        right = list(_run(candidate.find_candidate("cgverify"), unseeded, source))
        if all(map(_same, narrow, right)):
            return Outcome.NO_BIT
        in_float64 = [cell.model_copy(update={"dtype": "float64"}) for cell in cells]
        wide = list(_run(fault, in_float64, source, rounded_to=getattr(torch, cells[0].dtype)))
    except CandidateFailedError:
        return Outcome.MISSED
    return Outcome.BELOW if all(map(_within, wide, narrow)) else Outcome.MISSED


def _run(
    tried: Candidate, cells: Sequence[Cell], source: Source, rounded_to: torch.dtype | None = None
) -> Iterator[Seen]:
    """Both sides of every cell, view after view.

    Args:
        rounded_to: a narrower dtype that weights and inputs go through.
    """

    def bend(built: CaseInputs) -> CaseInputs:
        return built if rounded_to is None else built.rounded_to(rounded_to)

    window = Window(source)
    for view, in_view in groupby(sorted(cells, key=lambda cell: str(_view(cell))), key=_view):
        window.show(view)
        together = list(in_view)
        setting = variant_of(together[0])
        model, other = (_rounded(window.model(setting), rounded_to) for _ in range(2))
        reference = Reference(model, source.config, window.spread(), bend)
        try:
            bridge = tried.boot(other)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise CandidateFailedError("boot", error) from error
        for cell in together:
            observed = observe_cell(cell, reference, bridge)
            if observed.failure is not None:
                raise observed.failure
            yield Seen(observed, reference.parameters)


def _rounded(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The same model, its weights in view rounded to a dtype and widened again."""
    for weight in model.parameters():
        if dtype is not None and not weight.is_meta:
            weight.data = weight.data.to(dtype).to(weight.dtype)
    return model


def _view(cell: Cell) -> WeightsView:
    return cell.kind if cell.layer is None else cell.layer


def _same(one: Seen, other: Seen) -> bool:
    """Whether two candidates showed the same taps and behaved alike."""
    return len(one.sides) == len(other.sides) and all(map(_same_side, one.sides, other.sides))


def _same_side(one: ObservedSide, other: ObservedSide) -> bool:
    mine, theirs = one.observation, other.observation
    return (
        _conduct(one) == _conduct(other)
        and mine.taps.keys() == theirs.taps.keys()
        and all(same_tensor(tap, theirs.taps[name]) for name, tap in mine.taps.items())
    )


def _conduct(side: ObservedSide) -> tuple[object, ...]:
    seen = side.observation
    return seen.returned, repr(seen.raised), seen.violations, seen.silent_hooks


def _within(wide: Seen, narrow: Seen) -> bool:
    """Whether no tap in float64 is farther from its oracle than the narrow dtype's bound.

    Steps are matched by name: float64 has some that a 16-bit dtype has not, such as autocast to another one.
    """
    steps = {step.name: step for step in wide.observed.steps}
    return all(
        step.name in steps and _step_within(steps[step.name], wide.parameters, step.candidate, narrow.parameters)
        for step in narrow.observed.steps
    )


def _step_within(step: ObservedStep, exact: Parameters, narrow: ObservedSide, rounded: Parameters) -> bool:
    return _conduct(step.candidate) == _conduct(narrow) and all(
        _holds(stage, step.candidate, exact, narrow, rounded) for stage in step.stages
    )


def _holds(stage: Stage, wide: ObservedSide, exact: Parameters, narrow: ObservedSide, rounded: Parameters) -> bool:
    if stage.tap not in wide.tensors:
        return not stage.required
    answers = zip(_expected(stage, wide, exact), _expected(stage, narrow, rounded), strict=True)
    tap = wide.tensors[stage.tap]
    for (columns, true), (_, allowed) in answers:
        if true is None and allowed is None:  # a tap that it is computed from never fired
            continue
        if true is None or allowed is None or true.value.shape != allowed.value.shape:
            return False
        part = tap if columns is None else tap.reshape(true.value.shape[0], -1)[:, columns]
        if part.shape != true.value.shape:
            return False
        worst, _ = assess(part, replace(true, bound=true.bound + allowed.bound))
        if worst.value > 1:
            return False
    return True


def _expected(
    stage: Stage, side: ObservedSide, parameters: Parameters
) -> Iterator[tuple[slice | None, Expected | None]]:
    """The stage's answer for a side, whole or in blocks of columns."""
    if isinstance(stage.oracle, TapFunction):
        yield None, stage.oracle.expect(side.tensors, parameters)[0]
    elif stage.oracle.input in side.tensors:
        product = stage.oracle
        blocks = expect_products([side.tensors[product.input]], product.weight, parameters, product.autocast)
        for columns, (answer,) in blocks:
            yield columns, answer
    else:
        yield None, None
