"""One cell -> findings: probe, tap both sides, judge.

Cells that are in view together are observed first and judged afterwards, so that each weight is read once for all the
inputs that met it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, DynamicCache

from cgverify.common.printable import described
from cgverify.common.records import Cell, CellResult, Finding, Verdict
from cgverify.observe.cases import CASES
from cgverify.observe.cases.case import Case
from cgverify.observe.components import COMPONENTS, Component
from cgverify.observe.conditions import Conditions, Substitute
from cgverify.observe.inputs import CaseInputs, InputSpec, Step, checked_inputs, convert
from cgverify.observe.run import reference_parameters
from cgverify.observe.stages import Stage
from cgverify.observe.taps import Observation
from cgverify.oracle.parameters import Parameters
from cgverify.verification.check import ElapsedSeconds, ObservedCell, ObservedStep, Side, check_stages
from cgverify.verification.diagnosis.causes import with_causes
from cgverify.verification.diagnosis.sentence import sentence
from cgverify.verification.findings import drop_repeated_missing, findings_of, silent_hooks

RunSide = Callable[[Step, dict[str, Any], Any], Observation]
"""One side's forward: a step, its inputs cast and moved, the cache."""


class CandidateFailedError(Exception):
    """The candidate failed before its forward: it lacks the component, or its `get_random_inputs` is unfit."""

    def __init__(self, where: str, cause: BaseException) -> None:
        super().__init__(f"the candidate raised in {where}: {described(cause)}")
        self.where = where


@dataclass(frozen=True)
class PromptInputs:
    """What a prompt gives a component on either side; the same probe for both, unless each has states of its own."""

    reference: CaseInputs
    candidate: CaseInputs


class Reference:
    """One view of the reference in one setting: run once for all candidates that are given the same inputs."""

    def __init__(self, model: nn.Module, config: CodeGenConfig, spread: float) -> None:
        """
        Args:
            model: a one-block `CodeGenForCausalLM` that no bridge has touched.
            config: of the whole model.
            spread: see `InputSpec`.
        """
        self.parameters = reference_parameters(model)
        self.config = config
        self.spread = spread
        self._model = model
        self._runs: dict[tuple[object, ...], tuple[CaseInputs, list[_ReferenceStep]]] = {}

    def run(self, cell: Cell, built: CaseInputs) -> list[_ReferenceStep]:
        """The reference's side of every step, up to the first that it refuses."""
        key = (cell.kind, cell.case, cell.seed, cell.batch_size, cell.seq_len)
        known = self._runs.get(key)
        if known is None or not known[0].gives_same_inputs(built):
            known = self._runs[key] = (built, self._sides(cell, built))
        return known[1]

    def _sides(self, cell: Cell, built: CaseInputs) -> list[_ReferenceStep]:
        component = COMPONENTS[cell.kind]
        known: dict[tuple[int, Conditions], Observation] = {}

        def run(step: Step, inputs: dict[str, Any], cache: Any) -> Observation:
            """One forward serves all steps that differ only in what Hugging Face has not."""
            key = id(step.inputs), step.conditions.of_reference
            if cache is not None or key not in known:
                known[key] = component.run_reference(self._model, inputs, cache, cell.layer, key[1])
            return known[key]

        sides = []
        for step, given, observation in _forwards(cell, built, self.config, run):
            shared = CASES[cell.case].shared(observation.taps)
            # What the reference computed is no measure of what follows from another tensor.
            taps = observation.taps if step.conditions.patch is None else {}
            sides.append(_ReferenceStep(Side(observation, {**given, **shared, **taps}), shared))
        return sides


@dataclass(frozen=True)
class _ReferenceStep:
    side: Side
    shared: Mapping[str, torch.Tensor]
    """What the candidate's stages take from it."""


def observe_cell(
    cell: Cell,
    reference: Reference,
    bridge: nn.Module,
    given: PromptInputs | None = None,
    bend: Callable[[CaseInputs], CaseInputs] = lambda built: built,
) -> ObservedCell:
    """Run both sides of a cell, on the same inputs unless each has its own.

    Args:
        bridge: a one-block bridge with the reference's weights, in memory of its own.
        given: what a prompt gives; None where inputs are random.
        bend: what is done to random inputs before either side has them.

    Raises:
        CandidateFailedError: before anything could be compared.
    """
    started = time.perf_counter()
    component, case = COMPONENTS[cell.kind], CASES[cell.case]
    dtype = getattr(torch, cell.dtype)
    if given is None:
        recipe = InputSpec(
            cell.seed, cell.batch_size, cell.seq_len, reference.config.n_positions, dtype, reference.spread
        )
        built = bend(_probe(component, case, recipe, reference.config, bridge))
        given = PromptInputs(built, built)
    else:
        built = given.candidate
        _node(component, bridge)
    probed = time.perf_counter()

    def run(step: Step, inputs: dict[str, Any], cache: Any) -> Observation:
        return component.run_candidate(bridge, inputs, cache, cell.layer, step.conditions)

    def observed(run: RunSide) -> Iterator[ObservedStep]:
        ours = _forwards(cell, built, reference.config, run)
        for theirs, (step, inputs, observation) in zip(sides, ours, strict=False):
            candidate = Side(observation, {**inputs, **theirs.shared, **observation.taps})
            stages = _applicable(case.stages(component, step), step.conditions, observation)
            yield ObservedStep(step.name, stages, theirs.side, candidate, step.conditions)

    def again(once: ObservedStep, substitute: Substitute) -> ObservedStep | None:
        def run(step: Step, inputs: dict[str, Any], cache: Any) -> Observation:
            patch = substitute if step.name == once.name else step.conditions.patch
            conditions = replace(step.conditions, patch=patch)
            return component.run_candidate(bridge, inputs, cache, cell.layer, conditions)

        return next((step for step in observed(run) if step.name == once.name), None)

    sides = reference.run(cell, given.reference)
    between = time.perf_counter()
    steps = list(observed(run))
    spent = ElapsedSeconds(started, candidate=time.perf_counter() - between, reference=between - probed)
    return ObservedCell(cell, component, steps, again, spent)


def _applicable(stages: tuple[Stage, ...], conditions: Conditions, observation: Observation) -> tuple[Stage, ...]:
    """All stages, unless a hook that was to return another tensor never fired: then nothing can follow from it."""
    patch = conditions.patch
    if patch is None or patch.tap in observation.taps:
        return stages
    return tuple(stage for stage in stages if stage.tap == patch.tap)


def _probe(component: Component, case: Case, recipe: InputSpec, config: CodeGenConfig, bridge: nn.Module) -> CaseInputs:
    """The case's probe, from the candidate's own inputs where it has a method for them."""
    ours = component.random_inputs(config)
    own = getattr(_node(component, bridge), "get_random_inputs", None)
    if own is None:
        return case.build_inputs(component, recipe, ours, component.stress(config))
    try:
        return case.build_inputs(component, recipe, checked_inputs(ours, own), component.stress(config))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise CandidateFailedError("get_random_inputs", error) from error


def _node(component: Component, bridge: nn.Module) -> nn.Module:
    """The component in a bridge, which may lack it."""
    try:
        return bridge.get_submodule(component.bridge_path)
    except AttributeError as error:
        raise CandidateFailedError("boot", error) from error


def _forwards(
    cell: Cell, built: CaseInputs, config: CodeGenConfig, run: RunSide
) -> Iterator[tuple[Step, dict[str, torch.Tensor], Observation]]:
    """One side of every step: the step, what it was given, what was observed.

    After a step that raised, the next would start from a cache that is not what it seems.
    """
    caches = {step.cache: DynamicCache() for step in built.steps if step.cache is not None}
    for step in built.steps:
        cache = None if step.cache is None else caches[step.cache]
        inputs = convert(step.inputs, getattr(torch, cell.dtype), torch.device(cell.device))
        if cache is not None:
            _fill_layers_below(cache, cell.layer or 0, inputs["hidden_states"], config)
        given = {f"given.{name}": value.clone() for name, value in inputs.items()} | cached(cache, cell.layer)
        observation = run(step, inputs, cache)
        yield step, given, observation
        if observation.raised is not None and cache is not None:
            break


Keep = Callable[[list[Finding], Cell, ObservedStep, Parameters], list[Finding]]
"""What becomes of a step's findings and tensors before the tensors are let go."""


def keep_nothing(findings: list[Finding], _: Cell, __: ObservedStep, ___: Parameters) -> list[Finding]:
    return findings


Blame = Callable[[ObservedCell, Sequence[Finding], Parameters], str]
"""Says in one sentence why a cell failed; empty where it did not."""


def no_blame(_: ObservedCell, __: Sequence[Finding], ___: Parameters) -> str:
    return ""


def judge_cells(
    observed: Sequence[ObservedCell], parameters: Parameters, keep: Keep = keep_nothing, blame: Blame = sentence
) -> list[CellResult]:
    """Check every stage of every side, and write down what was found."""
    started = time.perf_counter()
    check_stages((step for one in observed for step in one.steps), parameters)
    shared = (time.perf_counter() - started) / max(len(observed), 1)
    return [_judged(one, parameters, keep, blame, shared) for one in observed]


def _judged(observed: ObservedCell, parameters: Parameters, keep: Keep, blame: Blame, shared: float) -> CellResult:
    """One cell, whose share of the oracle's time is `shared`. What is said of a failure is not part of its judging."""
    started = time.perf_counter()
    found = drop_repeated_missing(finding for step in observed.steps for finding in findings_of(step))
    judging = shared + time.perf_counter() - started
    findings: list[Finding] = []
    for step in observed.steps:
        own = [finding for finding in found if finding.step == step.name]
        findings += keep(with_causes(own, step, parameters), observed.cell, step, parameters)
    return CellResult(
        cell=observed.cell,
        findings=(*findings, *observed.beside),
        silent_hooks=silent_hooks(observed),
        blame=blame(observed, findings, parameters),
        seconds=time.perf_counter() - observed.spent.started,
        candidate_seconds=observed.spent.candidate,
        reference_seconds=observed.spent.reference,
        judging_seconds=judging,
    )


def not_run(cells: Iterable[Cell], why: Verdict, message: str) -> list[CellResult]:
    """Results for cells that the reference refuses (`unsupported`) or that could not be run (`error`)."""
    finding = Finding(step="", tap="", stage="", verdict=why, message=message)
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]


def candidate_failed(cells: Iterable[Cell], error: CandidateFailedError) -> list[CellResult]:
    """Results for cells whose candidate failed before anything was compared."""
    finding = Finding(step="", tap=error.where, stage=error.where, verdict=Verdict.DIVERGED, message=str(error))
    return [CellResult(cell=cell, findings=(finding,), seconds=0.0) for cell in cells]


def _fill_layers_below(cache: DynamicCache, layer: int, hidden_states: torch.Tensor, config: CodeGenConfig) -> None:
    """When a layer's turn comes, the layers below it have cached the step already; their lengths can be asked for."""
    batch, seq, width = hidden_states.shape
    nothing = hidden_states.new_zeros(batch, config.n_head, seq, width // config.n_head)
    for below in range(layer):
        cache.update(nothing, nothing, below)


def cached(cache: DynamicCache | None, layer: int | None) -> dict[str, torch.Tensor]:
    """What a cache holds of a layer before a forward."""
    if cache is None or layer is None or len(cache.layers) <= layer or not cache.layers[layer].is_initialized:
        return {}
    held: Any = cache.layers[layer]
    return {"given.cache_keys": held.keys.clone(), "given.cache_values": held.values.clone()}
