"""The whole model at once, as a user boots it: a prompt, then greedy generation through one cache.

The bridge is booted over all layers and called as a model. Every component of it is watched while that goes on, in each
forward and on both sides, and judged by its own stages from the weights that the checkpoint has for it, read anew
through the window: whatever layer a bridge really used there, and whatever it passed on. Tokens are the greatest logits
of each side, so each generates by itself.

Memory is that of one model and of the taps: Hugging Face's goes first, and the bridge is then booted over the very
same weights.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from cgverify.checkpoint.assembled import assembled, too_large
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant, WeightsView, Window
from cgverify.common.errors import CandidateError
from cgverify.common.printable import described, said
from cgverify.common.records import Cell, CellResult, Finding, Prompt, Verdict
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import Candidate, restore_working_directory
from cgverify.observe.cases.model import parts
from cgverify.observe.components import COMPONENTS, Component, record_cache, record_returned
from cgverify.observe.conditions import PLAIN
from cgverify.observe.inputs import PromptSpan, convert, prompt_context
from cgverify.observe.run import reference_parameters
from cgverify.observe.stages import RESIDUAL, Stage, copy
from cgverify.observe.taps import Observation, hooks_of, observe
from cgverify.plan.cells import GENERATED_TOKENS
from cgverify.verification import cell as one_cell
from cgverify.verification import drift
from cgverify.verification.check import ElapsedSeconds, ObservedCell, ObservedStep, Side
from cgverify.verification.prompt_pass import Journey, kind_of, name_of

_Watch = Callable[[Component, Any, Observation], contextlib.AbstractContextManager[None]]


@dataclass
class _Forward:
    """One forward of a whole model: what each component was given, and what it showed."""

    name: str
    given: dict[WeightsView, dict[str, torch.Tensor]] = field(default_factory=dict)
    seen: dict[WeightsView, Observation] = field(default_factory=dict)


@dataclass
class _Course:
    """One side's forwards, and what it generated."""

    forwards: list[_Forward] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    """`[vocabulary]`, of which each token is the greatest."""
    raised: BaseException | None = None


def run(
    cells: Sequence[Cell],
    window: Window,
    source: Source,
    candidates: Mapping[str, Candidate],
    journey: Journey,
    keep: one_cell.Keep,
) -> Iterator[CellResult]:
    """The cells of the whole model in one setting, once the journey through the window is over."""
    setting = ModelVariant(getattr(torch, cells[0].dtype), torch.device(cells[0].device), cells[0].rotary_dim)
    refusal = journey.refusal(cells[0])
    reason = too_large(source.config, setting)
    if refusal is not None or reason is not None:
        yield from one_cell.not_run(cells, *(refusal or (Verdict.UNSUPPORTED, str(reason))))
        return
    reference: _Course | None = None
    for cell in cells:
        started = time.perf_counter()
        model: Any = assembled(window, source.config, setting)
        if reference is None:
            reference = _course(model, _reference_nodes(model), _watch_reference, journey.prompt, setting)
        try:
            course = _booted_course(candidates[cell.candidate], model, journey.prompt, setting)
        except (CandidateError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a candidate may fail in any way, and that is a finding
            yield from one_cell.candidate_failed(
                [cell], one_cell.CandidateFailedError("boot of the whole model", error)
            )
            continue
        finally:
            del model
            gc.collect()  # a bridge and its components hold each other
        if reference.raised is not None:
            message = f"the reference refuses: {said(reference.raised)}"
            yield from one_cell.not_run([cell], Verdict.UNSUPPORTED, message)
            continue
        judged = list(_judged(cell, reference, course, window, setting, keep, started))
        findings = [finding for one in judged for finding in one.findings]
        yield CellResult(
            cell=cell,
            findings=(*findings, *_beside(cell, reference, course, journey)),
            blame=_first_blame(judged),
            seconds=time.perf_counter() - started,
        )


@restore_working_directory()
def _booted_course(candidate: Candidate, model: nn.Module, prompt: Prompt, setting: ModelVariant) -> _Course:
    """The candidate's, with all its hooks; and once more with none, which must come to the same."""
    bridge = candidate.boot(model)
    course = _course(bridge, _bridge_nodes(bridge), _watch_candidate, prompt, setting)
    unheard = _course(bridge, {}, _watch_candidate, prompt, setting)
    if course.raised is None and not (
        len(unheard.logits) == len(course.logits) and all(map(same_tensor, unheard.logits, course.logits))
    ):
        otherwise = "the logits are others" if unheard.raised is None else described(unheard.raised)
        amiss = "logits", f"{otherwise} when no hook is attached"
        course.forwards[-1].seen["unembed"].violations.append(amiss)
    return course


# --- one side ---------------------------------------------------------------------------------------------------------


def _course(
    model: Any, nodes: Mapping[WeightsView, nn.Module], watch: _Watch, prompt: Prompt, setting: ModelVariant
) -> _Course:
    """The prompt in its parts, then what the model makes of it, token by token."""
    course = _Course()
    cache = DynamicCache()
    length = len(prompt.tokens)
    generated = (PromptSpan(f"generated {i + 1}", length + i, length + i + 1) for i in range(GENERATED_TOKENS - 1))
    for part in (*parts(length), *generated):
        given = (*prompt.tokens, *course.tokens)[part.start : part.stop]
        forward = _Forward(part.name)
        logits = _forward(model, nodes, watch, torch.tensor([given], device=setting.device), part, cache, forward)
        course.forwards.append(forward)
        if isinstance(logits, BaseException):
            course.raised = logits
            break
        if part.stop >= length:
            course.logits.append(logits[0, -1])
            course.tokens.append(int(logits[0, -1].argmax()))
    return course


def _forward(
    model: Any,
    nodes: Mapping[WeightsView, nn.Module],
    watch: _Watch,
    tokens: torch.Tensor,
    part: PromptSpan,
    cache: DynamicCache,
    forward: _Forward,
) -> torch.Tensor | BaseException:
    """Run a model on some tokens, with these of its components watched: its logits, or what it raised."""
    held = {view: one_cell.cached(cache, view) for view in nodes if isinstance(view, int)}
    forward.seen = {view: Observation() for view in nodes}
    logits: list[torch.Tensor] = []

    def call(_: Observation) -> None:
        with contextlib.ExitStack() as stack:
            for view, node in nodes.items():
                stack.enter_context(watch(COMPONENTS[kind_of(view)], node, forward.seen[view]))
            returned = model(tokens, past_key_values=cache, use_cache=True)
        logits.append(returned if isinstance(returned, torch.Tensor) else returned.logits)

    whole = observe(call, {"input_ids": tokens})
    came: dict[str, torch.Tensor] = {"given.input_ids": tokens}
    for view, seen in forward.seen.items():
        forward.given[view] = came
        if isinstance(view, int):
            record_cache(cache, view, "attn.", seen.see)
            context = convert(prompt_context(part), came["given.hidden_states"].dtype, tokens.device)
            forward.given[view] = came | {f"given.{name}": each for name, each in context.items()} | held[view]
        if "returned" not in seen.taps:  # nothing came of this component, nor of those behind it
            seen.raised = whole.raised or ValueError("it returned no tensor")
            return seen.raised
        came = {"given.hidden_states": seen.taps["returned"]}
    if whole.raised is not None:
        return whole.raised
    if nodes:
        forward.seen["unembed"].see("logits", logits[0])
        forward.seen["embed"].violations += whole.violations
    return logits[0].detach()


@contextlib.contextmanager
def _watch_reference(component: Component, module: Any, seen: Observation) -> Iterator[None]:
    with component.watch(module, seen.see), _returned(module, seen):
        yield


@contextlib.contextmanager
def _watch_candidate(component: Component, node: Any, seen: Observation) -> Iterator[None]:
    try:
        with hooks_of(node, seen, {}), _returned(node, seen):
            yield
    finally:  # a candidate may raise at last, in this component or behind it
        component.name_taps(seen)


@contextlib.contextmanager
def _returned(module: nn.Module, seen: Observation) -> Iterator[None]:
    def see(_: nn.Module, __: Any, output: Any) -> None:
        record_returned(output, seen)

    handle = module.register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()


def _reference_nodes(model: Any) -> dict[WeightsView, nn.Module]:
    transformer = model.transformer
    return _in_order(transformer.wte, transformer.h, transformer.ln_f, model.lm_head)


def _bridge_nodes(bridge: Any) -> dict[WeightsView, nn.Module]:
    return _in_order(bridge.embed, bridge.blocks, bridge.ln_final, bridge.unembed)


def _in_order(embed: Any, blocks: Any, ln_final: Any, unembed: Any) -> dict[WeightsView, nn.Module]:
    return {"embed": embed, **dict(enumerate(blocks)), "ln_final": ln_final, "unembed": unembed}


# --- both sides -------------------------------------------------------------------------------------------------------


def _judged(
    cell: Cell,
    reference: _Course,
    candidate: _Course,
    window: Window,
    setting: ModelVariant,
    keep: one_cell.Keep,
    started: float,
) -> Iterator[CellResult]:
    """Every component in every forward, by the stages that it has in the window."""
    for view in reference.forwards[0].seen:
        component = COMPONENTS[kind_of(view)]
        name = name_of(view)
        steps = [
            ObservedStep(f"{theirs.name} {name}", _stages(component), _side(theirs, view), _side(ours, view), PLAIN)
            for theirs, ours in zip(reference.forwards, candidate.forwards, strict=False)
            if view in ours.given
        ]
        if not steps:  # the candidate raised before it came here
            return
        window.show(view)
        parameters = reference_parameters(window.model(setting))
        observed = ObservedCell(
            cell, component, steps, _not_again, ElapsedSeconds(started, candidate=0.0, reference=0.0)
        )
        yield from one_cell.judge_cells([observed], parameters, keep)


def _first_blame(judged: Sequence[CellResult]) -> str:
    """Why the first component failed that did, and how many behind it do; empty where all hold."""
    blames = [one.blame for one in judged if one.blame]
    if not blames:
        return ""
    more = len(blames) - 1
    return blames[0] + (
        f"; {more} more {'component fails' if more == 1 else 'components fail'} behind it" if more else ""
    )


def _not_again(*_: object) -> None:
    """A whole model is not run once more for a component's sake: its cells in the window tell what the cause is."""


def _stages(component: Component) -> tuple[Stage, ...]:
    if component.kind == "unembed":
        return (*component.stages(False), copy("returned", "logits", "returned", RESIDUAL))
    return component.stages(component.kind == "block")


def _side(forward: _Forward, view: WeightsView) -> Side:
    seen = forward.seen[view]
    return Side(seen, {**forward.given[view], **seen.taps})


def _beside(cell: Cell, reference: _Course, candidate: _Course, journey: Journey) -> Iterator[Finding]:
    """What is reported and does not gate: the whole beside the carried states, and the tokens."""
    forced = candidate.forwards[: len(parts(len(journey.prompt.tokens)))]
    for view in reference.forwards[0].seen:
        name = name_of(view)
        states = [forward.seen[view].taps.get("returned") for forward in forced]
        carried = journey.carried.get((cell.candidate, name))
        complete = [state for state in states if state is not None]
        if carried is None or len(complete) < len(states):
            continue
        whole = torch.cat(complete, 1)
        if whole.shape == carried.shape:
            yield drift.as_carried(name, whole, carried)
    if candidate.raised is None:
        yield drift.generation(candidate.tokens, reference.tokens, candidate.logits, reference.logits)
