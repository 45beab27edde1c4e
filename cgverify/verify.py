"""One cell -> findings: probe, tap both sides, judge.

Cells that are in view together are observed first and judged afterwards, so that each weight is read once for all the
inputs that met it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, DynamicCache

from cgverify import probe
from cgverify.components import COMPONENTS, Component
from cgverify.judge import (
    Difference,
    Worst,
    assess,
    difference,
    same_tensor,
    verdict,
)
from cgverify.oracle.arithmetic import Expected, rounded
from cgverify.oracle.parameters import Parameters
from cgverify.records import Cell, CellResult, Finding, Verdict
from cgverify.stages import Local, Stage, expect_products
from cgverify.tap import Observation


@dataclass
class Checked:
    """What one stage of one side came to, put together from blocks of columns."""

    dtype: torch.dtype
    r: float = 0.0
    index: int = 0
    error: float = 0.0

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


@dataclass
class Observed:
    """A cell that has been run and waits to be judged."""

    cell: Cell
    component: Component
    stages: tuple[Stage, ...]
    steps: list[tuple[str, Side, Side]]
    """Name, reference, candidate."""
    started: float


class Reference:
    """One view of the reference in one setting: run once for all candidates that are given the same inputs."""

    def __init__(self, model: nn.Module, config: CodeGenConfig, spread: float) -> None:
        """
        Args:
            model: a one-block `CodeGenForCausalLM` that no bridge has touched.
            config: of the whole model.
            spread: see `probe.Recipe`.
        """
        self.parameters = Parameters(model)
        self.config = config
        self.spread = spread
        self._model = model
        self._runs: dict[tuple[object, ...], tuple[probe.Probe, list[Side]]] = {}

    def run(self, cell: Cell, built: probe.Probe) -> list[Side]:
        """The reference's side of every step, up to the first that it refuses."""
        key = (cell.kind, cell.case, cell.seed, cell.batch_size, cell.seq_len)
        known = self._runs.get(key)
        if known is None or not known[0].same_inputs(built):
            known = self._runs[key] = (built, _run(cell, built, COMPONENTS[cell.kind].run_reference, self._model))
        return known[1]


def observe(cell: Cell, reference: Reference, bridge: nn.Module) -> Observed:
    """Run both sides of a cell on the same inputs.

    Args:
        bridge: a one-block bridge with the reference's weights, in memory of its own.

    Raises:
        Exception: whatever the candidate's `get_random_inputs` raises.
    """
    started = time.perf_counter()
    component = COMPONENTS[cell.kind]
    config = reference.config
    recipe = probe.Recipe(cell.seed, cell.batch_size, cell.seq_len, config.n_positions, reference.spread)
    own = getattr(bridge.get_submodule(component.bridge_path), "get_random_inputs", None)
    built = probe.build(cell.case, recipe, own or component.random_inputs(config), component.stress(config))
    theirs = reference.run(cell, built)
    ours = _run(cell, built, component.run_candidate, bridge)
    names = [step.name for step in built.steps]
    steps = list(zip(names, theirs, ours, strict=False))
    return Observed(cell, component, component.stages(built.with_cache), steps, started)


def _run(cell: Cell, built: probe.Probe, run: Callable[..., Observation], root: nn.Module) -> list[Side]:
    """One side of every step; after a step that raised, the next would start from a cache that is not what it seems."""
    cache = DynamicCache() if built.with_cache else None
    sides = []
    for step in built.steps:
        inputs = probe.convert(step.inputs, getattr(torch, cell.dtype), torch.device(cell.device))
        given = {f"given.{name}": value.clone() for name, value in inputs.items()} | _cached(cache, cell.layer)
        observation = run(root, inputs, cache, cell.layer)
        sides.append(Side(observation, {**given, **observation.taps}))
        if observation.raised is not None:
            break
    return sides


def judge(observed: Sequence[Observed], parameters: Parameters) -> list[CellResult]:
    """Check every stage of every side, and write down what was found."""
    _check_stages(observed, parameters)
    return [
        CellResult(
            cell=one.cell,
            findings=tuple(finding for step in one.steps for finding in _findings(one, *step)),
            silent_hooks=_silent(one),
            seconds=time.perf_counter() - one.started,
        )
        for one in observed
    ]


def not_run(cells: Iterable[Cell], why: Verdict, message: str) -> list[CellResult]:
    """Results for cells that the reference refuses (`unsupported`) or that could not be run (`error`)."""
    finding = Finding(step="", tap="", stage="", verdict=why, message=message)
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]


def candidate_failed(cells: Iterable[Cell], where: str, error: Exception) -> list[CellResult]:
    """Results for cells whose candidate raised in its `boot` or `get_random_inputs`, before anything was compared."""
    message = f"the candidate raised in {where}: {described(error)}"
    finding = Finding(step="", tap=where, stage=where, verdict=Verdict.DIVERGED, message=message)
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]


# --- stages -------------------------------------------------------------------------------------------------------------


def _check_stages(observed: Sequence[Observed], parameters: Parameters) -> None:
    products: dict[str, list[tuple[Side, int, Stage]]] = {}
    agreeing: list[tuple[Side, Side, int]] = []
    for one in observed:
        for _, reference, candidate in one.steps:
            for place, stage in enumerate(one.stages):
                reads = _question(reference, place, stage, parameters, products)
                # Where both sides agree bit for bit on the tap and on all that it comes from, one answer serves both.
                if reads is not None and _agree(reference, candidate, (stage.tap, *reads)):
                    agreeing.append((reference, candidate, place))
                else:
                    _question(candidate, place, stage, parameters, products)
    for weight, questions in products.items():
        inputs = [side.view[stage.oracle.input] for side, _, stage in questions]  # type: ignore[union-attr]
        for columns, answers in expect_products(inputs, weight, parameters):
            for (side, place, stage), answer in zip(questions, answers, strict=True):
                _check(side, place, side.view[stage.tap], answer, columns)
    for reference, candidate, place in agreeing:
        if place in reference.checked:
            candidate.checked[place] = reference.checked[place]


def _question(
    side: Side, place: int, stage: Stage, parameters: Parameters, products: dict[str, list[tuple[Side, int, Stage]]]
) -> list[str] | None:
    """Check a stage of a side, or put it on the list of its weight; returns the names that the answer comes from."""
    if stage.tap not in side.view:
        return None
    if place in side.checked:  # a reference that an earlier candidate stood beside
        return side.read[place]
    if isinstance(stage.oracle, Local):
        answer, side.read[place] = stage.oracle.expect(side.view, parameters)
        _check(side, place, side.view[stage.tap], answer)
    else:
        side.read[place] = [stage.oracle.input]
        if stage.oracle.input in side.view:
            products.setdefault(stage.oracle.weight, []).append((side, place, stage))
    return side.read[place]


def _agree(reference: Side, candidate: Side, names: Iterable[str]) -> bool:
    return all(
        name in candidate.view and same_tensor(reference.view[name], candidate.view[name])
        for name in names
        if name in reference.view
    )


def _check(side: Side, place: int, tap: torch.Tensor, answer: Expected | None, columns: slice | None = None) -> None:
    """Hold a tap, or some columns of it seen as a matrix, against what it must be."""
    if answer is None:
        return
    if tap.dtype != answer.dtype and tap.is_floating_point():
        # Seen after a cast (a candidate's wrong dtype is found elsewhere): one more rounding.
        answer = Expected(answer.value, rounded(answer.value, answer.bound, tap.dtype), answer.dtype)
    checked = side.checked.setdefault(place, Checked(answer.dtype))
    width = answer.value.shape[-1]
    if columns is None:
        part, first, stride = tap, 0, width
        right_shape = tap.shape == answer.value.shape
    else:
        rows = answer.value.shape[0]
        right_shape = tap.numel() % rows == 0 and tap.numel() // rows >= columns.stop
        part = tap.reshape(rows, -1)[:, columns] if right_shape else tap
        first, stride = columns.start, tap.numel() // rows
    if not right_shape:
        checked.add(Worst(math.inf, 0), 0, math.inf)
        return
    worst, error = assess(part, answer)
    row, column = divmod(worst.index, width) if width else (0, 0)
    checked.add(worst, row * stride + first + column, error)


# --- findings -----------------------------------------------------------------------------------------------------------


def _findings(observed: Observed, step: str, reference: Side, candidate: Side) -> list[Finding]:
    """What was found in one step of a cell, tap by tap in the order of the computation."""
    refused, raised = reference.observation.raised, candidate.observation.raised
    if refused is not None:
        accepts = "" if raised is not None else "; the candidate accepts it"
        message = f"the reference refuses: {described(refused)}{accepts}"
        return [Finding(step=step, tap="", stage="", verdict=Verdict.UNSUPPORTED, message=message)]
    findings = [
        _finding(observed, step, place, stage, reference, candidate)
        for place, stage in enumerate(observed.stages)
        if stage.tap in candidate.view or (stage.required and raised is None)
    ]
    if raised is not None:
        message = f"the candidate raised where the reference did not: {described(raised)}"
        findings.append(Finding(step=step, tap="raised", stage="forward", verdict=Verdict.DIVERGED, message=message))
    for name in candidate.observation.changed_inputs:
        message = f"the candidate changed its input {name} in place"
        findings.append(Finding(step=step, tap=name, stage="input", verdict=Verdict.DIVERGED, message=message))
    return findings


def _finding(
    observed: Observed, step: str, place: int, stage: Stage, reference: Side, candidate: Side
) -> Finding:
    ours, theirs = candidate.view.get(stage.tap), reference.view.get(stage.tap)
    checked, counterpart = candidate.checked.get(place), reference.checked.get(place)
    found = {
        "step": step,
        "tap": stage.tap,
        "stage": stage.name,
        "reference_r": counterpart.r if counterpart else None,
        "reference_error": counterpart.error if counterpart else None,
    }
    if ours is None:
        return Finding(**found, verdict=Verdict.MISSING, message=f"{stage.tap} never fired")
    found |= {"shape": tuple(ours.shape)}
    if checked is not None:
        found |= {"r": checked.r, "candidate_error": checked.error}
    wrong = _wrong_form(stage, ours, theirs, checked)
    if wrong:
        return Finding(**found, verdict=Verdict.DIVERGED, message=wrong)
    against = _against_reference(stage, ours, theirs, candidate.view)
    if against is not None:
        found |= {"max_abs": against.max_abs, "max_ulp": against.max_ulp}
    if stage.tap in candidate.observation.changed_later:
        message = f"{stage.tap} was changed in place after a hook had seen it"
        return Finding(**found, verdict=Verdict.DIVERGED, message=message)
    said = verdict(checked.r if checked else None, against)
    if said is not Verdict.BITWISE:
        index = checked.index if checked and (checked.r > 1 or not against) else against.index if against else 0
        found |= {"at": _place(index, ours.shape, stage.axes)}
    if said is Verdict.DIVERGED:
        return Finding(**found, verdict=said, message=_divergence(stage, checked, against, str(found["at"])))
    suspect = counterpart is not None and counterpart.r > 1
    message = "reference suspect: it breaks its own bound" if suspect else ""
    return Finding(**found, verdict=said, message=message)


def _wrong_form(
    stage: Stage, ours: torch.Tensor, theirs: torch.Tensor | None, checked: Checked | None
) -> str | None:
    """What is wrong with a tap's shape or dtype."""
    if theirs is not None and ours.shape != theirs.shape:
        return f"{stage.tap} has shape {list(ours.shape)}, the reference's {list(theirs.shape)}"
    dtype = checked.dtype if checked is not None else theirs.dtype if theirs is not None else ours.dtype
    if ours.dtype != dtype:
        return f"{stage.tap} is {_short(ours.dtype)} where it must be {_short(dtype)}"
    return None


def _against_reference(
    stage: Stage, ours: torch.Tensor, theirs: torch.Tensor | None, view: Mapping[str, torch.Tensor]
) -> Difference | None:
    if theirs is None:
        return None
    # With a cache Hugging Face's rotated key is seen after its cast; ours is compared after the same.
    ours = ours.to(theirs.dtype)
    mask = view.get("given.attention_mask") if stage.masked else None
    if mask is None:
        return difference(ours, theirs)
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    return difference(ours, theirs, visible)


def _divergence(stage: Stage, checked: Checked | None, against: Difference | None, at: str) -> str:
    apart = f", {against.max_abs:.3g} from the reference ({against.max_ulp:.3g} ULP)" if against else ""
    if checked is None:
        return f"{stage.tap} differs, and a tap that it is computed from never fired{apart}"
    if against is not None and math.isinf(against.max_abs):
        return f"{stage.name} is not finite at other elements than the reference, first at {at}"
    return f"{stage.name} is off by {checked.r:.3g} times its bound at {at}{apart}"


def _place(index: int, shape: torch.Size, axes: tuple[str, ...]) -> str:
    """`head 3, position 5, …` of a flat index."""
    if len(shape) != len(axes) or 0 in shape:
        return f"element {index}"
    coordinates = []
    for size in reversed(shape):
        index, coordinate = divmod(index, size)
        coordinates.append(coordinate)
    return ", ".join(f"{axis} {i}" for axis, i in zip(axes, reversed(coordinates), strict=True))


def _silent(observed: Observed) -> tuple[str, ...]:
    """Hooks that fired in no step, other than those whose absence is a finding."""
    required = {stage.tap for stage in observed.stages if stage.required}
    silent = [set(candidate.observation.silent_hooks) for _, _, candidate in observed.steps]
    return tuple(sorted(set.intersection(*silent) - required))


def _cached(cache: DynamicCache | None, layer: int | None) -> dict[str, torch.Tensor]:
    """What a cache holds of a layer before a forward."""
    if cache is None or layer is None or len(cache.layers) <= layer or not cache.layers[layer].is_initialized:
        return {}
    held: Any = cache.layers[layer]
    return {"given.cache_keys": held.keys.clone(), "given.cache_values": held.values.clone()}


def described(error: Exception) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
