"""Why a fault was not caught: it changes no bit, it is below the resolution of the dtype, or it was missed.

This is computed from the tensors of the fault, never declared. A fault *changes no bit* if, in every cell, its taps and
its side effects are those of the correct bridge. It is *below the resolution* of a dtype if no tap of its run in
float64, on the same inputs and weights rounded to the dtype, is farther from its oracle than the bound of the dtype:

    |tap − o| <= B + B₆₄          at every element of every stage

with tap and o from the run in float64, B₆₄ the bound of the stage in that run, and B its bound in the run in the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import nn

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window
from cgverify.common.records import Cell, WeightsView
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import Candidate, find_candidate
from cgverify.observe.inputs import CaseInputs
from cgverify.observe.run import reference_parameters
from cgverify.observe.stages import Stage, TapFunction, expect_products, expected_tap
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.parameters import Parameters
from cgverify.selftest.result import Outcome
from cgverify.verification.metrics import assess
from cgverify.verification.observe_cell import Reference, observe_cell, variant_of
from cgverify.verification.observed import CandidateFailedError, ObservedCell, ObservedSide, ObservedStep


@dataclass(frozen=True)
class CellRun:
    """A cell of one candidate that was run but not judged, with the weights of its oracle."""

    observed: ObservedCell
    parameters: Parameters

    @property
    def sides(self) -> list[ObservedSide]:
        """The candidate's side of each step."""
        return [step.candidate for step in self.observed.steps]


def explain_miss(fault: Candidate, cells: Sequence[Cell], source: Source) -> Outcome:
    """Return why no cell of a fault failed. The cells have one dtype and one device."""
    correct_cells = [cell.model_copy(update={"candidate": "cgverify"}) for cell in cells]
    try:
        narrow = list(_run(fault, cells, source))
        correct = list(_run(find_candidate("cgverify"), correct_cells, source))
        if all(map(_same, narrow, correct)):
            return Outcome.NO_BIT
        in_float64 = [cell.model_copy(update={"dtype": "float64"}) for cell in cells]
        wide = list(_run(fault, in_float64, source, rounded_to=getattr(torch, cells[0].dtype)))
    except CandidateFailedError:
        return Outcome.MISSED
    return Outcome.BELOW if all(map(_within, wide, narrow)) else Outcome.MISSED


def _run(
    candidate: Candidate, cells: Sequence[Cell], source: Source, rounded_to: torch.dtype | None = None
) -> Iterator[CellRun]:
    """Run both sides of every cell, one view of the weights after another.

    Args:
        rounded_to: a narrower dtype to which weights and inputs are rounded.
    """

    def rounded(inputs: CaseInputs) -> CaseInputs:
        return inputs if rounded_to is None else inputs.rounded_to(rounded_to)

    window = Window(source)
    for view, in_view in groupby(sorted(cells, key=lambda cell: str(_view(cell))), key=_view):
        window.show(view)
        together = list(in_view)
        variant = variant_of(together[0])
        model, other, weights = (_rounded(window.model(v), rounded_to) for v in (variant, variant, variant.on_cpu))
        parameters = reference_parameters(weights, device=variant.device.type)
        reference = Reference(model, parameters, source.config, window.spread(), change_inputs=rounded)
        try:
            bridge = candidate.boot(other)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise CandidateFailedError("boot", error) from error
        for cell in together:
            observed = observe_cell(cell, reference, bridge)
            if observed.failure is not None:
                raise observed.failure
            if observed.error is not None:  # so that nothing explains why the fault was not found
                raise CandidateFailedError(cell.component, RuntimeError(observed.error))
            yield CellRun(observed, reference.parameters)


def _rounded(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Round the weights of a model that are in view to a dtype, and cast them back."""
    for weight in model.parameters():
        if dtype is not None and not weight.is_meta:
            weight.data = weight.data.cpu().to(dtype).to(weight.dtype).to(weight.device)
    return model


def _view(cell: Cell) -> WeightsView:
    return cell.kind if cell.layer is None else cell.layer


def _same(one: CellRun, other: CellRun) -> bool:
    """Return whether two candidates have the same taps and the same side effects."""
    return len(one.sides) == len(other.sides) and all(map(_same_side, one.sides, other.sides))


def _same_side(one: ObservedSide, other: ObservedSide) -> bool:
    mine, theirs = one.observation, other.observation
    return (
        _side_effects(one) == _side_effects(other)
        and mine.taps.keys() == theirs.taps.keys()
        and all(same_tensor(tap, theirs.taps[name]) for name, tap in mine.taps.items())
    )


def _side_effects(side: ObservedSide) -> tuple[object, ...]:
    seen = side.observation
    return seen.returned, repr(seen.raised), seen.violations, seen.silent_hooks


def _within(wide: CellRun, narrow: CellRun) -> bool:
    """Return whether no tap in float64 is farther from its oracle than the bound of the narrow dtype.

    Steps are matched by name: float64 has steps that a 16-bit dtype lacks, such as autocast to another dtype.
    """
    steps = {step.name: step for step in wide.observed.steps}
    return all(
        step.name in steps and _step_within(steps[step.name], wide.parameters, step.candidate, narrow.parameters)
        for step in narrow.observed.steps
    )


def _step_within(step: ObservedStep, exact: Parameters, narrow: ObservedSide, rounded: Parameters) -> bool:
    return _side_effects(step.candidate) == _side_effects(narrow) and all(
        _stage_within(stage, step.candidate, exact, narrow, rounded) for stage in step.stages
    )


def _stage_within(
    stage: Stage, wide: ObservedSide, exact: Parameters, narrow: ObservedSide, rounded: Parameters
) -> bool:
    if stage.tap not in wide.tensors:
        return not stage.required
    expected = zip(_expected(stage, wide, exact), _expected(stage, narrow, rounded), strict=True)
    tap = wide.tensors[stage.tap]
    for (columns, true), (_, allowed) in expected:
        if true is None and allowed is None:  # a tap that the stage reads never fired
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
    """Return the expected value of a stage on one side, as a whole or in blocks of columns."""
    if isinstance(stage.oracle, TapFunction):
        yield None, expected_tap(stage, side.tensors, parameters)
    elif stage.oracle.input in side.tensors:
        product = stage.oracle
        blocks = expect_products([side.tensors[product.input]], product.weight, parameters, product.autocast)
        for columns, (expected,) in blocks:
            yield columns, expected
    else:
        yield None, None
