"""One cell -> findings: probe, tap both sides, judge.

Cells that are in view together are observed first and judged afterwards, so that each weight is read once for all the
inputs that met it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, DynamicCache

from cgverify import probe
from cgverify.checking import Observed, Side, check_stages
from cgverify.components import COMPONENTS, Component
from cgverify.findings import described, findings_of, silent_hooks
from cgverify.oracle.parameters import Parameters
from cgverify.records import Cell, CellResult, Finding, Verdict
from cgverify.tap import Observation


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
        self._runs: dict[tuple[object, ...], tuple[probe.Probe, list[Side]]] = {}

    def run(self, cell: Cell, built: probe.Probe) -> list[Side]:
        """The reference's side of every step, up to the first that it refuses."""
        key = (cell.kind, cell.case, cell.seed, cell.batch_size, cell.seq_len)
        known = self._runs.get(key)
        if known is None or not known[0].same_inputs(built):
            run = COMPONENTS[cell.kind].run_reference
            known = self._runs[key] = (built, _run(cell, built, self.config, partial(run, self._model)))
        return known[1]


def observe(cell: Cell, reference: Reference, bridge: nn.Module) -> Observed:
    """Run both sides of a cell on the same inputs.

    Args:
        bridge: a one-block bridge with the reference's weights, in memory of its own.

    Raises:
        CandidateFailedError: before anything could be compared.
    """
    started = time.perf_counter()
    component = COMPONENTS[cell.kind]
    config = reference.config
    recipe = probe.Recipe(cell.seed, cell.batch_size, cell.seq_len, config.n_positions, reference.spread)
    built = _probe(cell, component, recipe, config, bridge)
    theirs = reference.run(cell, built)
    ours = _run(cell, built, config, partial(component.run_candidate, bridge), unhooked=cell.case != "stress")
    names = [step.name for step in built.steps]
    steps = list(zip(names, theirs, ours, strict=False))
    return Observed(cell, component, component.stages(built.with_cache), steps, started)


def _probe(
    cell: Cell, component: Component, recipe: probe.Recipe, config: CodeGenConfig, bridge: nn.Module
) -> probe.Probe:
    """The cell's probe, from the candidate's own inputs where it has a method for them."""
    ours = component.random_inputs(config)
    try:
        own = getattr(bridge.get_submodule(component.bridge_path), "get_random_inputs", None)
    except AttributeError as error:
        raise CandidateFailedError("boot", error) from error
    if own is None:
        return probe.build(cell.case, recipe, ours, component.stress(config))
    try:
        return probe.build(cell.case, recipe, probe.held_to(ours, own), component.stress(config))
    except (Exception, SystemExit) as error:
        raise CandidateFailedError("get_random_inputs", error) from error


def _run(
    cell: Cell, built: probe.Probe, config: CodeGenConfig, run: Callable[..., Observation], unhooked: bool = False
) -> list[Side]:
    """One side of every step; after a step that raised, the next would start from a cache that is not what it seems.

    Args:
        unhooked: look at the first step without hooks as well.
    """
    cache = DynamicCache() if built.with_cache else None
    sides: list[Side] = []
    for step in built.steps:
        inputs = probe.convert(step.inputs, getattr(torch, cell.dtype), torch.device(cell.device))
        if cache is not None:
            _fill_layers_below(cache, cell.layer or 0, inputs["hidden_states"], config)
        given = {f"given.{name}": value.clone() for name, value in inputs.items()} | _cached(cache, cell.layer)
        first = {"unhooked": True} if unhooked and not sides else {}
        observation = run(inputs, cache, cell.layer, **first)
        sides.append(Side(observation, {**given, **observation.taps}))
        if observation.raised is not None:
            break
    return sides


def judge(observed: Sequence[Observed], parameters: Parameters) -> list[CellResult]:
    """Check every stage of every side, and write down what was found."""
    check_stages(observed, parameters)
    return [
        CellResult(
            cell=one.cell,
            findings=tuple(finding for step in one.steps for finding in findings_of(one, *step)),
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
