"""Run both sides of a cell on the same inputs and keep their tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import Cache, CodeGenConfig, DynamicCache, StaticCache

from cgverify.checkpoint.window import ModelVariant
from cgverify.common.errors import CandidateError, StorageError, UsageError
from cgverify.common.records import Cell, Finding
from cgverify.observe.candidate import Candidate
from cgverify.observe.cases import CASES
from cgverify.observe.components import COMPONENTS
from cgverify.observe.conditions import Conditions, Substitute
from cgverify.observe.fault import calls_a_side, is_ours, reason
from cgverify.observe.inputs import (
    CandidateInputsError,
    CaseInputs,
    InputSpec,
    Step,
    checked_inputs,
    convert,
    fill_layers_below,
    require_rows,
)
from cgverify.observe.run import run_candidate, run_reference
from cgverify.observe.stages import CACHE_START, Stage
from cgverify.observe.taps import Observation, cpu_copy
from cgverify.oracle.parameters import Parameters
from cgverify.verification.kept_weights import findings_of_weights
from cgverify.verification.observed import CandidateFailedError, ObservedCell, ObservedSide, ObservedStep


def variant_of(cell: Cell) -> ModelVariant:
    """Return the variant of the model that a cell is about."""
    return ModelVariant(getattr(torch, cell.dtype), torch.device(cell.device), cell.rotary_dim)


# --- inputs -----------------------------------------------------------------------------------------------------------


def _random_inputs(cell: Cell, reference: Reference, bridge: nn.Module) -> CaseInputs:
    """Build the inputs of a cell, from the candidate's own `get_random_inputs` if it has one."""
    component, case = COMPONENTS[cell.kind], CASES[cell.case]
    config, dtype = reference.config, getattr(torch, cell.dtype)
    shape = cell.batch_size, cell.seq_len
    spec = InputSpec(cell.seed, *shape, config.n_positions, dtype, reference.spread, config.n_head, cell.attention)
    builder = component.random_inputs(config)
    own = getattr(_submodule(bridge, cell), "get_random_inputs", None)
    if own is None:
        return reference.change_inputs(case.build_inputs(component, spec, config, builder))

    @calls_a_side
    def from_candidate(*arguments: Any) -> Any:
        try:
            return own(*arguments)
        except BaseException as error:  # a candidate may fail in any way, and that is a finding
            if isinstance(error, KeyboardInterrupt) or is_ours(error):
                raise
            raise CandidateFailedError("get_random_inputs", error) from error

    try:
        inputs = case.build_inputs(component, spec, config, checked_inputs(builder, from_candidate))
    except CandidateInputsError as error:
        message = f"the candidate's get_random_inputs breaks the contract: {error}"
        raise CandidateFailedError("get_random_inputs", error, message) from error
    return reference.change_inputs(inputs)


def _submodule(bridge: nn.Module, cell: Cell) -> nn.Module:
    """Return the component in a bridge.

    Raises:
        CandidateFailedError: the bridge has no such component.
    """
    try:
        return bridge.get_submodule(COMPONENTS[cell.kind].bridge_path)
    except AttributeError as error:
        raise CandidateFailedError("boot", error) from error


# --- the forwards of one side -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Forward:
    """One forward that can begin: its inputs in the cell's dtype and on its device, and its cache."""

    step: Step
    inputs: dict[str, Any]
    cache: Cache | None
    given: dict[str, torch.Tensor]
    """Copies of the inputs and of the cache's content on the CPU, as `given.…`."""

    def breaks_off(self, observation: Observation) -> bool:
        """Whether no later step can run: this one raised and may have left its cache in any state."""
        return observation.raised is not None and self.cache is not None


def _forwards(cell: Cell, steps: Sequence[Step], config: CodeGenConfig) -> Iterator[_Forward]:
    """Prepare the forwards of one side, each when its turn comes, since steps share caches."""
    caches = {step.cache: _empty_cache(step, config) for step in steps if step.cache is not None}
    inputs: dict[str, Any] = {}
    for step in steps:
        cache = None if step.cache is None else caches[step.cache]
        memory, inputs = inputs, convert(step.inputs, getattr(torch, cell.dtype), torch.device(cell.device))
        if step.in_last_memory:
            inputs = {name: memory[name].copy_(value) for name, value in inputs.items()}
        if cache is not None:
            if step.change_cache is not None:
                step.change_cache(cache)
            fill_layers_below(cache, cell.layer or 0, config.n_head, inputs["hidden_states"])
        given = {f"given.{name}": cpu_copy(value) for name, value in inputs.items()} | cached(cache, cell.layer)
        mask = given.get("given.attention_mask")
        if mask is not None and mask.dtype == torch.bool:  # the stages add masks
            dtype = inputs["hidden_states"].dtype
            given["given.attention_mask"] = torch.zeros(mask.shape, dtype=dtype).masked_fill(
                ~mask, torch.finfo(dtype).min
            )
        if isinstance(cache, StaticCache):
            given[CACHE_START] = torch.tensor(int(cache.get_seq_length(cell.layer or 0)))
        yield _Forward(step, inputs, cache, given)


def _empty_cache(step: Step, config: CodeGenConfig) -> Cache:
    return DynamicCache() if step.cache_size is None else StaticCache(config=config, max_cache_len=step.cache_size)


def cached(cache: Cache | None, layer: int | None) -> dict[str, torch.Tensor]:
    """Copy what a cache has of a layer to the CPU; nothing if that is nothing."""
    if cache is None or layer is None or len(cache.layers) <= layer or not cache.layers[layer].is_initialized:
        return {}
    of_layer: Any = cache.layers[layer]
    return {"given.cache_keys": cpu_copy(of_layer.keys), "given.cache_values": cpu_copy(of_layer.values)}


# --- both sides -------------------------------------------------------------------------------------------------------


class Reference:
    """The reference's weights in view in one model variant, run once for all candidates with the same inputs."""

    def __init__(
        self,
        model: nn.Module,
        parameters: Parameters,
        config: CodeGenConfig,
        spread: float,
        change_inputs: Callable[[CaseInputs], CaseInputs] = lambda inputs: inputs,
        change_stage: Callable[[Stage], Stage] = lambda stage: stage,
    ) -> None:
        """
        Args:
            model: a one-block `CodeGenForCausalLM` over which no bridge was booted.
            parameters: its weights on the CPU, for the oracle.
            config: the whole model's.
            spread: see `InputSpec`.
            change_inputs: how random inputs are changed for both sides.
            change_stage: how the stages of both sides are changed.
        """
        self.parameters = parameters
        self.config = config
        self.spread = spread
        self.change_inputs = change_inputs
        self.change_stage = change_stage
        self._model = model
        self._known: dict[tuple[object, ...], tuple[CaseInputs, list[ObservedSide]]] = {}

    def run(self, cell: Cell, inputs: CaseInputs) -> list[ObservedSide]:
        """Return the reference's side of every step, up to the first that it refuses."""
        key = (cell.kind, cell.case, cell.seed, cell.batch_size, cell.seq_len)
        known = self._known.get(key)
        if known is None or not known[0].gives_same_inputs(inputs):
            known = self._known[key] = (inputs, self._run(cell, inputs))
        return known[1]

    def _run(self, cell: Cell, inputs: CaseInputs) -> list[ObservedSide]:
        component, case = COMPONENTS[cell.kind], CASES[cell.case]
        known: dict[tuple[int, Conditions], Observation] = {}
        sides = []
        for step in inputs.steps:  # what the reference raises on inputs that are not valid would look like a refusal
            require_rows(step.inputs, self.config.vocab_size, self.config.n_positions)
        for forward in _forwards(cell, inputs.steps, self.config):
            # Steps without a cache that differ only in what Hugging Face does not have share one forward.
            conditions = forward.step.conditions.for_reference
            key = id(forward.step.inputs), conditions
            if forward.cache is not None or key not in known:
                known[key] = run_reference(
                    component, self._model, forward.inputs, forward.cache, cell.layer, conditions
                )
            observation = known[key]
            shared = case.shared(observation.taps)
            # If a hook replaces a tensor, the reference's taps do not measure what follows from it.
            taps = observation.taps if forward.step.conditions.patch is None else {}
            sides.append(ObservedSide(observation, {**forward.given, **shared, **taps}, shared))
            if forward.breaks_off(observation):
                break
        return sides


@dataclass(frozen=True)
class _CandidateRun:
    """The candidate's side of a cell, which can be run more than once."""

    cell: Cell
    bridge: nn.Module
    config: CodeGenConfig
    inputs: CaseInputs
    reference: Sequence[ObservedSide]
    change_stage: Callable[[Stage], Stage]

    def run(self, steps: Sequence[Step]) -> Iterator[ObservedStep]:
        component, case = COMPONENTS[self.cell.kind], CASES[self.cell.case]
        seen: dict[str | None, Observation] = {}
        repeated = {step.repeats for step in steps}
        fired: set[str] = set()
        for reference, forward in zip(self.reference, _forwards(self.cell, steps, self.config), strict=False):
            step, conditions = forward.step, forward.step.conditions
            observation = run_candidate(
                component,
                self.bridge,
                forward.inputs,
                forward.cache,
                self.cell.layer,
                conditions,
                seen.get(step.repeats),
                events=step.events,
            )
            if step.name in repeated:
                seen[step.name] = observation
            else:
                observation.live.clear()
            side = ObservedSide(observation, {**forward.given, **reference.shared, **observation.taps})
            stages = tuple(map(self.change_stage, case.stages(component, forward.step)))
            for patch in conditions.patches:
                if patch.tap in observation.taps:
                    fired.add(patch.tap)
                    continue
                if patch.tap in fired and observation.raised is None:
                    message = f"{patch.tap} never fires in these settings, and does in others"
                    observation.violations.append((patch.tap, message))
                # Nothing follows from a hook that never fired.
                stages = tuple(stage for stage in stages if stage.tap == patch.tap)
            yield ObservedStep(step.name, stages, reference, side, conditions, case.accepts_equal_bits)
            if forward.breaks_off(observation):
                break

    def rerun(self, observed: ObservedStep, substitute: Substitute) -> ObservedStep | None:
        """Run the cell again with another tensor at one tap of one step, and return that step if it is reached."""
        steps = [
            replace(step, conditions=replace(step.conditions, patch=substitute)) if step.name == observed.name else step
            for step in self.inputs.steps
        ]
        return next((step for step in self.run(steps) if step.name == observed.name), None)


def observe_cell(cell: Cell, reference: Reference, bridge: nn.Module) -> ObservedCell:
    """Run both sides of a cell on random inputs.

    Args:
        bridge: a one-block bridge with the reference's weights, in memory of its own.
    """

    def observe() -> ObservedCell:
        started = time.perf_counter()
        inputs = _random_inputs(cell, reference, bridge)
        return _observe(cell, reference, bridge, inputs, inputs, started)

    return without_blame(cell, observe)


def observe_prompt_cell(
    cell: Cell, reference: Reference, bridge: nn.Module, theirs: CaseInputs, ours: CaseInputs
) -> ObservedCell:
    """Run both sides of a cell, each on the inputs that a prompt gives it; see `observe_cell`."""

    def observe() -> ObservedCell:
        started = time.perf_counter()
        _submodule(bridge, cell)
        return _observe(cell, reference, bridge, theirs, ours, started)

    return without_blame(cell, observe)


def without_blame(cell: Cell, observe: Callable[[], ObservedCell]) -> ObservedCell:
    """Return what `observe` returns, or the cell with the candidate's failure, or with an error that blames no side.

    Raises:
        UsageError, StorageError: they end the run.
    """
    try:
        return observe()
    except CandidateFailedError as error:
        return ObservedCell(cell, failure=error)
    except (UsageError, StorageError):  # they end the run
        raise
    except Exception as error:  # a fault of this package, memory, the device: never a finding about a side
        return ObservedCell(cell, error=reason(error))


def _observe(
    cell: Cell, reference: Reference, bridge: nn.Module, theirs: CaseInputs, ours: CaseInputs, started: float
) -> ObservedCell:
    before = time.perf_counter()
    sides = reference.run(cell, theirs)
    between = time.perf_counter()
    candidate = _CandidateRun(cell, bridge, reference.config, ours, sides, reference.change_stage)
    steps = list(candidate.run(ours.steps))
    kept = _kept_weights(cell, bridge, reference.parameters) if CASES[cell.case].whole_weights else ()
    seconds = time.perf_counter() - between
    return ObservedCell(cell, steps, None, started, seconds, between - before, candidate.rerun, kept)


def _kept_weights(cell: Cell, bridge: nn.Module, parameters: Parameters) -> tuple[Finding, ...]:
    try:
        with torch.no_grad():
            return findings_of_weights(cell.kind, cell.layer, bridge, parameters)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or is_ours(error):
            raise
        raise CandidateFailedError("its weights", error) from error


def observe_candidate(
    candidate: Candidate, model: nn.Module, cells: Sequence[Cell], observe: Callable[[Cell, Any], ObservedCell]
) -> list[ObservedCell]:
    """Boot a candidate over a one-block model, which is changed in place, and observe cells with its bridge.

    Raises:
        CandidateError: the candidate is a function that does not return a bridge.
    """
    try:
        bridge = candidate.boot(model)
    except (CandidateError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a candidate may fail in any way, and that is a finding
        if is_ours(error):
            return [ObservedCell(cell, error=reason(error)) for cell in cells]
        return [ObservedCell(cell, failure=CandidateFailedError("boot", error)) for cell in cells]
    return [observe(cell, bridge) for cell in cells]
