"""The whole model at once, as a user boots it: a prompt, then greedy generation through one cache.

The bridge is booted over all layers and called as a model. Every component is watched in each forward on both sides,
and checked by its own stages against the weights that the checkpoint has for it. Those are read again through the
window, whichever layer the bridge really used. Each side generates on its own: a token is the greatest of its logits.

Memory is that of one model and of the taps: Hugging Face's model runs first, then the bridge is booted over the same
weights.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import CodeGenForCausalLM, DynamicCache

from cgverify.checkpoint.assembled import assembled, too_large
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window
from cgverify.common.errors import CandidateError, StorageError, UsageError
from cgverify.common.printable import described, message_of
from cgverify.common.records import EAGER, Cell, CellResult, Finding, Prompt, Verdict, WeightsView
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import Candidate, restore_working_directory
from cgverify.observe.cases.model import prompt_spans
from cgverify.observe.components import COMPONENTS, Component
from cgverify.observe.conditions import PLAIN
from cgverify.observe.fault import calls_a_side, is_ours, reason
from cgverify.observe.inputs import PromptSpan, convert, prompt_context
from cgverify.observe.run import reference_parameters, set_attention
from cgverify.observe.stages import RESIDUAL, Stage, copy
from cgverify.observe.taps import Observation, hook_points, observe, record_cache, record_returned, watch_hooks
from cgverify.oracle.shortcuts import NO_SHORTCUTS, Shortcuts
from cgverify.plan.cases import GENERATED_TOKENS
from cgverify.verification import drift
from cgverify.verification.judge import Judge, uncompared
from cgverify.verification.model_calls import ModelCalls, call_reference, described_differences
from cgverify.verification.observe_cell import cached, variant_of
from cgverify.verification.observed import CandidateFailedError, ObservedCell, ObservedSide, ObservedStep
from cgverify.verification.prompt_pass import PromptPass, kind_of, name_of, views

WHOLE_BOOT = "boot of the whole model"
"""Where a candidate fails before its forward."""


def verify_whole_model(
    cells: Sequence[Cell],
    source: Source,
    window: Window,
    candidates: Mapping[str, Candidate],
    prompt_pass: PromptPass,
    judge: Judge,
    shortcuts: Shortcuts,
    watch: Callable[[Cell | None], None],
) -> Iterator[CellResult]:
    """Yield the results of the whole model's cells in one model variant, after the pass through the window.

    Args:
        watch: called with each cell before it is run, and with None before it is judged.
    """
    variant, prompt = variant_of(cells[0]), prompt_pass.prompt
    shortage = too_large(source.config, variant)
    refusal = prompt_pass.refusal(cells[0]) or (None if shortage is None else (Verdict.ERROR, shortage))
    if refusal is not None:
        yield from uncompared(cells, *refusal)
        return
    reference: ModelRun | None = None
    for cell in cells:
        started = time.perf_counter()
        watch(cell)
        try:
            model = assembled(window, source.config, variant)
            reference = reference or run_reference(model, prompt, cell.attention, shortcuts)
            try:
                candidate = _run_candidate(candidates[cell.candidate], model, prompt, reference.calls)
            finally:
                del model
                gc.collect()  # a bridge and its components refer to each other
        except Exception as error:
            yield from _uncompared(cell, error)
            continue
        if reference.raised is not None:
            yield from uncompared([cell], Verdict.UNSUPPORTED, f"the reference refuses: {message_of(reference.raised)}")
            continue
        watch(None)
        try:
            judged = list(_judge_components(cell, reference, candidate, window, judge, shortcuts, started))
            drifted = list(_drift(cell, reference, candidate, prompt_pass))
        except Exception as error:
            yield from _uncompared(cell, error)
            continue
        yield CellResult(
            cell=cell,
            findings=(*(finding for one in judged for finding in one.findings), *drifted),
            blame=_first_sentence(judged),
            seconds=time.perf_counter() - started,
        )


def _uncompared(cell: Cell, error: Exception) -> list[CellResult]:
    """Return the result of a cell whose run or judgement raised: only `CandidateFailedError` is the candidate's."""
    if isinstance(error, CandidateFailedError):
        return uncompared([cell], Verdict.DIVERGED, str(error), error.where)
    if isinstance(error, UsageError | StorageError):  # they end the run
        raise error
    return uncompared([cell], Verdict.ERROR, reason(error))


# --- one side ---------------------------------------------------------------------------------------------------------


@dataclass
class ModelForward:
    """One forward of a whole model: the inputs and the observation of each component."""

    name: str
    given: dict[WeightsView, dict[str, torch.Tensor]] = field(default_factory=dict)
    seen: dict[WeightsView, Observation] = field(default_factory=dict)
    logits: torch.Tensor | None = None
    """`[1, seq, vocabulary]`; None if it raised."""
    raised: BaseException | None = None

    def side(self, view: WeightsView) -> ObservedSide:
        """Return a component as one side of a step."""
        return ObservedSide(self.seen[view], {**self.given[view], **self.seen[view].taps})


@dataclass
class ModelRun:
    """The forwards of one side, and what it generated."""

    forwards: list[ModelForward] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    """`[vocabulary]` for each generated token."""
    calls: ModelCalls | None = None
    """What the model returned for other calls; None if it raised before, and for a candidate."""

    @property
    def tokens(self) -> list[int]:
        return [int(logits.argmax()) for logits in self.logits]

    @property
    def raised(self) -> BaseException | None:
        return self.forwards[-1].raised


WatchComponent = Callable[[Component, Any, Observation], contextlib.AbstractContextManager[Any]]
"""Show the taps of a component's module to an observation while the module runs."""


@dataclass(frozen=True)
class WatchedModel:
    """A whole model of one side, with the modules of the components that are watched."""

    model: Any
    modules: Mapping[WeightsView, nn.Module]
    watch: WatchComponent
    device: torch.device

    def run(self, prompt: Prompt) -> ModelRun:
        """Run the prompt in its spans, then generate token by token."""
        run, cache, length = ModelRun(), DynamicCache(), len(prompt.tokens)
        generated = (PromptSpan(f"generated {i + 1}", length + i, length + i + 1) for i in range(GENERATED_TOKENS - 1))
        for span in (*prompt_spans(length), *generated):
            tokens = (*prompt.tokens, *run.tokens)[span.start : span.stop]
            forward = self._forward(span, tokens, cache)
            run.forwards.append(forward)
            if forward.logits is None:
                break
            if span.stop >= length:
                run.logits.append(forward.logits[0, -1])
        return run

    def _forward(self, span: PromptSpan, token_ids: Sequence[int], cache: DynamicCache) -> ModelForward:
        tokens = torch.tensor([token_ids], device=self.device)
        before = {view: cached(cache, view) for view in self.modules if isinstance(view, int)}
        forward = ModelForward(span.name, seen={view: Observation() for view in self.modules})
        returned: list[torch.Tensor] = []

        @calls_a_side
        def call(_: Observation) -> None:
            with contextlib.ExitStack() as stack:
                for view, module in self.modules.items():
                    seen = forward.seen[view]
                    stack.enter_context(self.watch(COMPONENTS[kind_of(view)], module, seen))
                    handle = module.register_forward_hook(partial(_record_output, seen))
                    stack.callback(handle.remove)
                output = self.model(tokens, past_key_values=cache, use_cache=True)
            returned.append(output if isinstance(output, torch.Tensor) else output.logits)

        whole = observe(call, {"input_ids": tokens})
        given: dict[str, torch.Tensor] = {"given.input_ids": tokens.cpu()}
        for view, seen in forward.seen.items():
            forward.given[view] = given
            if isinstance(view, int):
                record_cache(cache, view, COMPONENTS["block"].attention_prefix, seen.record)
                dtype = given["given.hidden_states"].dtype
                context = convert(prompt_context(span), dtype, torch.device("cpu"))
                forward.given[view] = given | {f"given.{name}": each for name, each in context.items()} | before[view]
            if "returned" not in seen.taps:  # nor did any component behind it return
                forward.raised = seen.raised = whole.raised or ValueError("it returned no tensor")
                return forward
            given = {"given.hidden_states": seen.taps["returned"]}
        if whole.raised is not None:
            forward.raised = whole.raised
            return forward
        if self.modules:
            forward.seen["unembed"].record("logits", returned[0])
            forward.seen["embed"].violations += whole.violations
        forward.logits = returned[0].detach().cpu()
        return forward


def _record_output(seen: Observation, _: nn.Module, __: Any, output: Any) -> None:
    record_returned(output, seen)


def run_reference(
    model: CodeGenForCausalLM, prompt: Prompt, attention: str = EAGER, shortcuts: Shortcuts = NO_SHORTCUTS
) -> ModelRun:
    """Run Hugging Face's model with an implementation of attention, and leave the model with eager attention."""
    modules = _modules(model, model.config.n_layer, lambda component: component.reference_path)
    set_attention(model, attention)
    run = WatchedModel(model, modules, _watch_reference, model.device).run(prompt)
    if run.raised is None:
        run.calls = call_reference(model, prompt.tokens, model.device, shortcuts)
    set_attention(model, EAGER)
    return run


def _watch_reference(component: Component, module: Any, seen: Observation) -> contextlib.AbstractContextManager[None]:
    return component.reference_taps(module, seen.record)


def _watch_candidate(_: Component, node: Any, seen: Observation) -> contextlib.AbstractContextManager[Any]:
    return watch_hooks(dict(hook_points(node)), seen, {})


def _run_candidate(
    candidate: Candidate, model: CodeGenForCausalLM, prompt: Prompt, calls: ModelCalls | None
) -> ModelRun:
    """Run a candidate with all its hooks, then without any hook, which must give the same logits, then in other ways.

    Args:
        calls: what Hugging Face's model returned in those.

    Raises:
        CandidateError: the candidate is a function that does not return a bridge.
        CandidateFailedError: its boot raises, or the bridge has too few components.
    """
    n_layers, device = model.config.n_layer, model.device
    try:
        with restore_working_directory():
            bridge = candidate.boot(model)
            modules = _bridge_modules(bridge, n_layers)
            run = WatchedModel(bridge, modules, _watch_candidate, device).run(prompt)
            plain = WatchedModel(bridge, {}, lambda *_: contextlib.nullcontext(), device).run(prompt)
    except (CandidateError, CandidateFailedError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a candidate may fail in any way, and that is a finding
        if is_ours(error):
            raise
        raise CandidateFailedError(WHOLE_BOOT, error) from error
    for forward in run.forwards:
        for view, seen in forward.seen.items():
            COMPONENTS[kind_of(view)].rename_taps(seen)
    same = len(plain.logits) == len(run.logits) and all(map(same_tensor, plain.logits, run.logits))
    if run.raised is None and not same:
        what = "the logits are others" if plain.raised is None else described(plain.raised)
        run.forwards[-1].seen["unembed"].violations.append(("logits", f"{what} when no hook is attached"))
    if run.raised is None and calls is not None:
        wrong = described_differences(bridge, {name_of(view): node for view, node in modules.items()}, calls)
        run.forwards[-1].seen["unembed"].violations += [("logits", what) for what in wrong]
    return run


def _bridge_modules(bridge: Any, n_layers: int) -> dict[WeightsView, nn.Module]:
    try:
        return _modules(bridge, n_layers, lambda component: component.bridge_path)
    except AttributeError as error:
        names = dict(bridge.named_modules(remove_duplicate=False))
        missing = next(name for name in map(name_of, views(n_layers)) if name not in names)
        message = f"the bridge over the whole model of {n_layers} blocks has no {missing}"
        raise CandidateFailedError(WHOLE_BOOT, error, message) from error


def _modules(model: Any, n_layers: int, path_of: Callable[[Component], str]) -> dict[WeightsView, nn.Module]:
    """Return the module of each view's component, in the order of the computation.

    Args:
        path_of: the component's path in a model of one block.
    """
    paths = {view: path_of(COMPONENTS[kind_of(view)]) for view in views(n_layers)}
    return {view: model.get_submodule(path.replace(".0", f".{view}")) for view, path in paths.items()}


# --- both sides -------------------------------------------------------------------------------------------------------


def _judge_components(
    cell: Cell,
    reference: ModelRun,
    candidate: ModelRun,
    window: Window,
    judge: Judge,
    shortcuts: Shortcuts,
    started: float,
) -> Iterator[CellResult]:
    """Yield the result of each component in all forwards, up to the component in which the candidate raised."""
    for view in reference.forwards[0].seen:
        component, name = COMPONENTS[kind_of(view)], name_of(view)
        steps = [
            ObservedStep(f"{theirs.name} {name}", _stages(component), theirs.side(view), ours.side(view), PLAIN)
            for theirs, ours in zip(reference.forwards, candidate.forwards, strict=False)
            if view in ours.given
        ]
        if not steps:
            return
        window.show(view)
        variant = variant_of(cell)
        parameters = reference_parameters(window.reference(variant.on_cpu), shortcuts, variant.device.type)
        # Not run again to confirm a diagnosis: the component's cell in the window does that.
        yield from judge.results([ObservedCell(cell, steps, started=started)], parameters)


def _stages(component: Component) -> tuple[Stage, ...]:
    if component.kind == "unembed":
        return (*component.stages(False), copy("returned", "logits", "returned", RESIDUAL))
    return component.stages(component.kind == "block")


def _first_sentence(judged: Sequence[CellResult]) -> str:
    """Say why the first component failed, and count those that fail behind it; empty if none failed."""
    first, *others = [one.blame for one in judged if one.blame] or [""]
    more = f"; {len(others)} more {'component fails' if len(others) == 1 else 'components fail'} behind it"
    return f"{first}{more if others else ''}"


def _drift(cell: Cell, reference: ModelRun, candidate: ModelRun, prompt_pass: PromptPass) -> Iterator[Finding]:
    """Compare the candidate's whole model with what it carried through the window, and the generated tokens."""
    forced = candidate.forwards[: len(prompt_spans(len(prompt_pass.prompt.tokens)))]
    for view in reference.forwards[0].seen:
        name = name_of(view)
        carried = prompt_pass.carried.get((cell.candidate, name))
        states = [forward.seen[view].taps.get("returned") for forward in forced]
        complete = [state for state in states if state is not None]
        if carried is None or len(complete) < len(states):
            continue
        whole = torch.cat(complete, 1)
        if whole.shape == carried.shape:
            yield drift.as_carried(name, whole, carried)
    if candidate.raised is None:
        yield drift.generation(candidate.logits, reference.logits)
