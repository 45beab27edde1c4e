"""One cell -> findings: probe, tap both sides, judge.

Cells that are in view together are observed first and judged afterwards, so that each weight is read once for all the
inputs that met it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, DynamicCache

from cgverify import probe
from cgverify.blame import with_causes
from cgverify.cases import CASES
from cgverify.cases.case import Case
from cgverify.checking import Observed, ObservedStep, Side, check_stages
from cgverify.components import COMPONENTS, Component
from cgverify.conditions import Conditions
from cgverify.findings import described, findings_of, silent_hooks
from cgverify.oracle.parameters import Parameters
from cgverify.records import Cell, CellResult, Finding, Verdict
from cgverify.stages import Stage
from cgverify.tap import Observation

Run = Callable[[probe.Step, dict[str, Any], Any], Observation]
"""One side's forward: a step, its inputs cast and moved, the cache."""


class CandidateFailedError(Exception):
    """The candidate failed before its forward: it lacks the component, or its `get_random_inputs` is unfit."""

    def __init__(self, where: str, cause: BaseException) -> None:
        super().__init__(f"the candidate raised in {where}: {described(cause)}")
        self.where = where


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
        self._runs: dict[tuple[object, ...], tuple[probe.Probe, list[_ReferenceStep]]] = {}

    def run(self, cell: Cell, built: probe.Probe) -> list[_ReferenceStep]:
        """The reference's side of every step, up to the first that it refuses."""
        key = (cell.kind, cell.case, cell.seed, cell.batch_size, cell.seq_len)
        known = self._runs.get(key)
        if known is None or not known[0].same_inputs(built):
            known = self._runs[key] = (built, self._sides(cell, built))
        return known[1]

    def _sides(self, cell: Cell, built: probe.Probe) -> list[_ReferenceStep]:
        component = COMPONENTS[cell.kind]
        known: dict[tuple[int, Conditions], Observation] = {}

        def run(step: probe.Step, inputs: dict[str, Any], cache: Any) -> Observation:
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


def observe(cell: Cell, reference: Reference, bridge: nn.Module, rounded_to: torch.dtype | None = None) -> Observed:
    """Run both sides of a cell on the same inputs.

    Args:
        bridge: a one-block bridge with the reference's weights, in memory of its own.
        rounded_to: a narrower dtype that the inputs go through.

    Raises:
        CandidateFailedError: before anything could be compared.
    """
    started = time.perf_counter()
    component, case = COMPONENTS[cell.kind], CASES[cell.case]
    dtype = getattr(torch, cell.dtype)
    recipe = probe.Recipe(
        cell.seed, cell.batch_size, cell.seq_len, reference.config.n_positions, dtype, reference.spread
    )
    built = _probe(component, case, recipe, reference.config, bridge)
    if rounded_to is not None:
        built = built.rounded(rounded_to)

    def run(step: probe.Step, inputs: dict[str, Any], cache: Any) -> Observation:
        unhooked = case.unhooked and step is built.steps[0]
        return component.run_candidate(bridge, inputs, cache, cell.layer, step.conditions, unhooked)

    steps = []
    ours = _forwards(cell, built, reference.config, run)
    for theirs, (step, given, observation) in zip(reference.run(cell, built), ours, strict=False):
        candidate = Side(observation, {**given, **theirs.shared, **observation.taps})
        stages = _applicable(case.stages(component, step), step.conditions, observation)
        steps.append(ObservedStep(step.name, stages, theirs.side, candidate, step.conditions))
    return Observed(cell, component, steps, started)


def _applicable(stages: tuple[Stage, ...], conditions: Conditions, observation: Observation) -> tuple[Stage, ...]:
    """All stages, unless a hook that was to return another tensor never fired: then nothing can follow from it."""
    patch = conditions.patch
    if patch is None or patch.tap in observation.taps:
        return stages
    return tuple(stage for stage in stages if stage.tap == patch.tap)


def _probe(
    component: Component, case: Case, recipe: probe.Recipe, config: CodeGenConfig, bridge: nn.Module
) -> probe.Probe:
    """The case's probe, from the candidate's own inputs where it has a method for them."""
    ours = component.random_inputs(config)
    try:
        own = getattr(bridge.get_submodule(component.bridge_path), "get_random_inputs", None)
    except AttributeError as error:
        raise CandidateFailedError("boot", error) from error
    if own is None:
        return case.probe(component, recipe, ours, component.stress(config))
    try:
        return case.probe(component, recipe, probe.held_to(ours, own), component.stress(config))
    except (Exception, SystemExit) as error:
        raise CandidateFailedError("get_random_inputs", error) from error


def _forwards(
    cell: Cell, built: probe.Probe, config: CodeGenConfig, run: Run
) -> Iterator[tuple[probe.Step, dict[str, torch.Tensor], Observation]]:
    """One side of every step: the step, what it was given, what was observed.

    After a step that raised, the next would start from a cache that is not what it seems.
    """
    caches = {step.cache: DynamicCache() for step in built.steps if step.cache is not None}
    for step in built.steps:
        cache = None if step.cache is None else caches[step.cache]
        inputs = probe.convert(step.inputs, getattr(torch, cell.dtype), torch.device(cell.device))
        if cache is not None:
            _fill_layers_below(cache, cell.layer or 0, inputs["hidden_states"], config)
        given = {f"given.{name}": value.clone() for name, value in inputs.items()} | _cached(cache, cell.layer)
        observation = run(step, inputs, cache)
        yield step, given, observation
        if observation.raised is not None and cache is not None:
            break


Keep = Callable[[list[Finding], Cell, ObservedStep, Parameters], list[Finding]]
"""What becomes of a step's findings and tensors before the tensors are let go."""


def keep_nothing(findings: list[Finding], _: Cell, __: ObservedStep, ___: Parameters) -> list[Finding]:
    return findings


def judge(observed: Sequence[Observed], parameters: Parameters, keep: Keep = keep_nothing) -> list[CellResult]:
    """Check every stage of every side, and write down what was found."""
    check_stages(observed, parameters)
    return [
        CellResult(
            cell=one.cell,
            findings=tuple(
                f
                for step in one.steps
                for f in keep(with_causes(findings_of(step), step, parameters), one.cell, step, parameters)
            ),
            silent_hooks=silent_hooks(one),
            seconds=time.perf_counter() - one.started,
        )
        for one in observed
    ]


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


def _cached(cache: DynamicCache | None, layer: int | None) -> dict[str, torch.Tensor]:
    """What a cache holds of a layer before a forward."""
    if cache is None or layer is None or len(cache.layers) <= layer or not cache.layers[layer].is_initialized:
        return {}
    held: Any = cache.layers[layer]
    return {"given.cache_keys": held.keys.clone(), "given.cache_values": held.values.clone()}
