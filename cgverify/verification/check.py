"""Compare every stage of every side with its oracle.

Cells that were observed together are checked together. A weight is then read once for all of its inputs, and if both
sides agree bit for bit on a tap and on everything that it is computed from, one answer serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from cgverify.observe.bits import same_tensor
from cgverify.observe.stages import (
    Misfit,
    Stage,
    TapFunction,
    UnfitTapError,
    WeightProduct,
    expect_products,
    fitting,
    wrong_form,
)
from cgverify.oracle.arithmetic import Expected, bound_after_rounding
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import TrustedBits, Worst, errors, worst_ratio
from cgverify.verification.observed import ObservedSide, ObservedStep, StageCheck

ProductCheck = tuple[ObservedSide, int, Stage, str]
"""A side, a stage with its index, and the name of the product's input."""

Factor = tuple[str, torch.dtype | None]
"""A weight's name, and the dtype that autocast rounds it to."""


def check_stages(steps: Iterable[ObservedStep], parameters: Parameters) -> None:
    """Fill in `checks` and `read` of both sides of every step that the reference accepts."""
    products: dict[Factor, list[ProductCheck]] = {}
    agreeing: list[tuple[ObservedSide, ObservedSide, int]] = []
    for step in steps:
        reference, candidate = step.reference, step.candidate
        if reference.observation.raised is not None:
            continue
        for side in (reference, candidate):
            side.elements |= _elements(step.stages, side, parameters)
        for index, stage in enumerate(step.stages):
            if step.accepts_equal_bits and stage.tap in candidate.tensors and _agree(reference, candidate, [stage.tap]):
                candidate.accepted.add(index)
                continue
            names = _check_or_defer(reference, index, stage, parameters, products, step.misfit_of_reference)
            if names is not None and _agree(reference, candidate, (stage.tap, *names)):
                agreeing.append((reference, candidate, index))
            else:
                _check_or_defer(candidate, index, stage, parameters, products, step.misfit)
    for (weight, autocast), checks in products.items():
        inputs = [side.tensors[name] for side, _, _, name in checks]
        for columns, answers in expect_products(inputs, weight, parameters, autocast):
            for (side, index, stage, _), answer in zip(checks, answers, strict=True):
                _check(side, index, stage, answer, columns)
    for reference, candidate, index in agreeing:
        if index in reference.checks:
            candidate.checks[index] = reference.checks[index]


def _elements(stages: Iterable[Stage], side: ObservedSide, parameters: Parameters) -> dict[str, int]:
    """Return the number of elements that each product of a side must have, by its tap."""
    found = {}
    for stage in stages:
        if isinstance(stage.oracle, WeightProduct) and stage.oracle.input in side.tensors:
            m, n = parameters.tensor(stage.oracle.weight).shape
            found[stage.tap] = side.tensors[stage.oracle.input].numel() // n * m
    return found


def forget_checks(steps: Iterable[ObservedStep]) -> None:
    """Undo what `check_stages` filled in, perhaps in part."""
    for step in steps:
        for side in (step.reference, step.candidate):
            for found in (side.checks, side.read, side.unfit, side.forms, side.elements, side.accepted):
                found.clear()


def _check_or_defer(
    side: ObservedSide,
    index: int,
    stage: Stage,
    parameters: Parameters,
    products: dict[Factor, list[ProductCheck]],
    misfit: Misfit,
) -> list[str] | None:
    """Check a stage of a side at once, or add it to the products of its weight.

    Returns:
        The names of the tensors that the oracle starts from; None if the tap never fired.
    """
    tap = side.tensors.get(stage.tap)
    if tap is None:
        return None
    if index in side.checks:  # the reference's side, checked together with an earlier candidate
        return side.read[index]
    if isinstance(stage.oracle, TapFunction):
        answer, side.read[index] = stage.oracle.expect(side.tensors, parameters, misfit)
        if isinstance(answer, UnfitTapError):
            side.unfit[index] = answer
        else:
            side.forms[stage.tap] = wrong_form(tap, torch.empty(answer.value.shape, dtype=answer.dtype, device="meta"))
            _check(side, index, stage, answer)
    else:
        product = stage.oracle
        side.read[index] = [product.input]
        try:
            fitting(product.input, side.tensors, misfit)
        except UnfitTapError as unfit:
            side.unfit[index] = unfit
        else:
            products.setdefault((product.weight, product.autocast), []).append((side, index, stage, product.input))
    return side.read[index]


def _agree(reference: ObservedSide, candidate: ObservedSide, names: Iterable[str]) -> bool:
    """Whether both sides have the same bits in every named tensor that either has."""
    return all(
        name in reference.tensors
        and name in candidate.tensors
        and same_tensor(reference.tensors[name], candidate.tensors[name])
        for name in names
        if name in reference.tensors or name in candidate.tensors
    )


def _check(side: ObservedSide, index: int, stage: Stage, answer: Expected, columns: slice | None = None) -> None:
    """Compare a tap, or some columns of it as a matrix, with what the oracle expects."""
    tap = side.tensors[stage.tap]
    if tap.dtype != answer.dtype and tap.is_floating_point():
        # The tap was seen after a cast, which is one more rounding. A wrong dtype of a candidate is another finding.
        answer = Expected(answer.value, bound_after_rounding(answer.value, answer.bound, tap.dtype), answer.dtype)
    check = side.checks.get(index)
    if check is None:
        has_heads = "head" in stage.axes and tap.dim() == len(stage.axes)
        bits = TrustedBits(tap.shape[stage.axes.index("head")] if has_heads else 1)
        check = side.checks[index] = StageCheck(answer.dtype, bits)
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
        check.add(Worst(math.inf, 0), 0, math.inf)
        return
    error = errors(part, answer)
    worst = worst_ratio(error, answer)
    row, column = divmod(worst.index, width) if width else (0, 0)
    check.add(worst, row * stride + first + column, float(error.max()) if error.numel() else 0.0)
    if error.numel():
        _add_bits(check.bits, stage, side.tensors, error.reshape(answer.value.shape), answer.value.abs(), columns)


def visible(stage: Stage, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Which elements of a tap the attention mask does not hide, broadcastable to the tap; None if it hides none."""
    mask = tensors.get("given.attention_mask") if stage.masked else None
    if mask is None or mask.dtype == torch.bool:
        return mask
    return mask > torch.finfo(mask.dtype).min


def _add_bits(
    bits: TrustedBits,
    stage: Stage,
    tensors: Mapping[str, torch.Tensor],
    error: torch.Tensor,
    value: torch.Tensor,
    columns: slice | None,
) -> None:
    """Add errors and absolute values, in the tap's shape or as a matrix of some of its columns."""
    seen = visible(stage, tensors)
    if seen is not None:  # the lowest value of a mask is far greater than every score
        error, value = error.masked_fill(~seen, 0), value.masked_fill(~seen, 0)
    if columns is not None:
        width = tensors[stage.tap].numel() // len(error) // bits.heads
        head = torch.arange(columns.start, columns.stop) // width
        error, value = error.amax(0), value.amax(0)
    elif bits.heads > 1:
        axis = stage.axes.index("head")
        others = [other for other in range(error.dim()) if other != axis]
        head = torch.arange(bits.heads)
        error, value = error.amax(others), value.amax(others)
    else:
        head = torch.zeros(1, dtype=torch.int64)
        error, value = error.max().reshape(1), value.max().reshape(1)
    bits.add(error, value.nan_to_num(nan=0.0), head)
