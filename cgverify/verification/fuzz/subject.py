"""A booted bridge whose components are called in forked processes.

Every sequence of calls runs in a process of its own, forked from one in which the candidate was booted and never
called. So nothing that a candidate keeps, in its modules or globally, outlives a sequence, and what is found can be
repeated.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window
from cgverify.common.errors import UsageError
from cgverify.common.records import Cell, CellResult, Verdict
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import find_candidate
from cgverify.observe.cases import CASES
from cgverify.observe.components import COMPONENTS
from cgverify.observe.inputs import CaseInputs, InputSpec
from cgverify.observe.run import reference_parameters, set_attention
from cgverify.observe.stages import Stage
from cgverify.plan.cases import AFTER, BEFORE, PER_LAYER
from cgverify.plan.cells import weights_view
from cgverify.verification.fuzz.calls import CASE, NAME, Call, CallMaker, step_name
from cgverify.verification.judge import Judge, uncompared
from cgverify.verification.observe_cell import Reference, observe_prompt_cell, variant_of
from cgverify.verification.observed import ObservedCell, ObservedStep

KINDS = (*BEFORE, *PER_LAYER, *AFTER)
"""The components that can be called."""
KILLED = -9
"""The exit code of a process that SIGKILL ended, a name that Windows lacks."""


@dataclass(frozen=True)
class Judged:
    """A sequence of calls on one component that was judged."""

    result: CellResult
    """Without the taps that have the same bits on both sides."""
    calls: tuple[Call, ...] = ()
    """The calls that Hugging Face's side took."""
    until_failure: tuple[Call, ...] = ()
    """All calls up to the first that fails."""
    equal: tuple[tuple[str, str], ...] = ()
    """The taps that had the same bits on both sides in a call, with their stages."""

    @property
    def fails(self) -> bool:
        return any(one.verdict.fails for one in self.result.findings)

    @property
    def error(self) -> str:
        """Why something could not be run; empty if it could."""
        errors = [one.message for one in self.result.findings if one.verdict is Verdict.ERROR]
        return errors[0] if errors and not self.fails else ""


@contextlib.contextmanager
def _as_case() -> Iterator[None]:
    """Let sequences of calls be a case, which no plan can have."""
    CASES[NAME] = CASE
    try:
        yield
    finally:
        del CASES[NAME]


class Subject:
    """The booted candidate and the reference with some weights in view, in one dtype. Neither is ever called here."""

    def __init__(self, source: Source, cell: Cell) -> None:
        window = Window(source)
        window.show(weights_view(cell))
        variant = variant_of(cell)
        model = window.reference(variant)
        set_attention(model, "eager")
        self.reference = Reference(model, reference_parameters(model), source.config, window.spread())
        self.bridge = find_candidate(cell.candidate).boot(window.model(variant))
        self._makers: dict[Cell, CallMaker] = {}

    @_as_case()
    def explain(self, cell: Cell, calls: Sequence[Call]) -> Judged:
        """Run calls one after the other on this instance, and judge each by its stages."""
        observed = self._observed(cell, self.prepare(cell).forwards(calls))
        (result,) = Judge().results([observed], self.reference.parameters)
        return Judged(result, until_failure=tuple(calls))

    @_as_case()
    def judge(self, cell: Cell, calls: Sequence[Call]) -> Judged:
        """Run and judge calls without taps that have the same bits on both sides, and without a sentence."""
        inputs = self.prepare(cell).forwards(calls)
        observed = self._observed(cell, inputs)
        steps = [replace(step, stages=tuple(_different_stages(step))) for step in observed.steps]
        (result,) = Judge(with_sentence=False).results([replace(observed, steps=steps)], self.reference.parameters)
        named = {step_name(number): call for number, call in enumerate(calls, start=1)}
        taken = [named[step.name] for step in steps if step.name in named and step.reference.observation.raised is None]
        failing = {one.step.removeprefix("before ") for one in result.findings if one.verdict.fails}
        last = next((number for number in range(1, len(calls)) if step_name(number) in failing), len(calls))
        equal = [
            (stage.name, stage.tap)
            for before, after in zip(observed.steps, steps, strict=True)
            for stage in before.stages
            if stage not in after.stages
        ]
        return Judged(result, tuple(taken), tuple(calls[:last]), tuple(dict.fromkeys(equal)))

    def prepare(self, cell: Cell) -> CallMaker:
        """Return what makes forwards of calls on a component, which forked processes then have."""
        if cell not in self._makers:
            config = self.reference.config
            dtype = getattr(torch, cell.dtype)
            spec = InputSpec(cell.seed, 1, 4, config.n_positions, dtype, self.reference.spread, config.n_head)
            self._makers[cell] = CallMaker.of(COMPONENTS[cell.kind], config, spec)
        return self._makers[cell]

    def _observed(self, cell: Cell, inputs: CaseInputs) -> ObservedCell:
        return observe_prompt_cell(cell, self.reference, self.bridge, inputs, inputs)


def _different_stages(step: ObservedStep) -> Iterator[Stage]:
    """Yield the stages whose taps have not the same bits on both sides."""
    for stage in step.stages:
        ours, theirs = step.candidate.tensors.get(stage.tap), step.reference.tensors.get(stage.tap)
        if ours is None or theirs is None or not same_tensor(ours, theirs):
            yield stage


def target(source: Source, model: str, candidate: str, component: str, dtype: str, seed: int = 0) -> Cell:
    """Return the cell of a component (`embed`, `blocks.0`, `blocks.0.attn`), whose inputs its calls say.

    Raises:
        UsageError: the checkpoint has no such component.
    """
    layer: int | None = None
    kind = component
    if component.startswith("blocks."):
        number, _, rest = component.removeprefix("blocks.").partition(".")
        kind, layer = rest or "block", int(number) if number.isdecimal() else -1
    elif component in PER_LAYER:
        layer = 0
    if kind not in KINDS or (layer is None) == (kind in PER_LAYER) or not 0 <= (layer or 0) < source.config.n_layer:
        raise UsageError(f"--component {component!r} cannot be called: give {', '.join(KINDS)}, or blocks.N.attn.")
    return Cell(
        model=model,
        weights=source.digest,
        layer=layer,
        kind=kind,
        candidate=candidate,
        dtype=dtype,
        device="cpu",
        rotary_dim=source.config.rotary_dim,
        case=NAME,
        seed=seed,
        batch_size=1,
        seq_len=1,
    )


def replay(model: str, bridge: str, component: str, dtype: str, calls: Sequence[Call], seed: int = 0) -> CellResult:
    """Run a sequence of calls on a new instance of a bridge, and return its result.

    Args:
        bridge: what `--bridge` takes.
        component: `embed`, `blocks.0`, `blocks.0.attn`, …
        seed: of what hooks return.

    Raises:
        UsageError: the bridge or the component cannot be found.
    """
    source = resolve(model)
    cell = target(source, model, bridge, component, dtype, seed)
    return Subject(source, cell).explain(cell, calls).result


# --- forked processes -------------------------------------------------------------------------------------------------


def can_fork() -> bool:
    """Whether this system can fork a process, which `in_fork` needs. Windows cannot."""
    return hasattr(os, "fork")


def in_fork(run: Callable[[], Judged], cell: Cell, calls: Sequence[Call]) -> Judged:
    """Return what `run` returns in a forked process. One that a candidate ends is a failure of the candidate."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are no other threads that hold locks
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(_answer(run, cell), pipe)
        finally:
            os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if answer:
        judged: Judged = pickle.loads(answer)
        return judged
    code = os.waitstatus_to_exitcode(status)
    message = f"the process of the candidate ended without an answer (exit code {code})"
    # The system kills what takes too much memory, which is no fault of a candidate.
    verdict = Verdict.ERROR if code == KILLED else Verdict.DIVERGED
    return Judged(uncompared([cell], verdict, message)[0], until_failure=tuple(calls))


def _answer(run: Callable[[], Judged], cell: Cell) -> Judged:
    try:
        return run()
    except Exception as error:  # of this package: reported by the parent process
        return Judged(uncompared([cell], Verdict.ERROR, f"{type(error).__name__}: {error}")[0])
