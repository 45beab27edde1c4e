"""Draw sequences of calls, run each on a fresh instance, and shrink the first that fails.

Every sequence runs in a process of its own, forked from one in which the candidate was booted and never called. So
nothing that a candidate keeps, in its modules or globally, outlives a sequence, and what is found can be repeated.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window
from cgverify.common.errors import CgverifyError, UsageError
from cgverify.common.records import Cell, CellResult, Record, Verdict
from cgverify.observe.candidate import find_candidate
from cgverify.observe.cases import CASES
from cgverify.observe.components import COMPONENTS
from cgverify.observe.inputs import InputSpec
from cgverify.observe.run import reference_parameters, set_attention
from cgverify.plan.cases import AFTER, BEFORE, PER_LAYER
from cgverify.verification.fuzz.calls import (
    CASE,
    MASKS,
    MODES,
    NAME,
    POSITIONS,
    SPANS,
    VALUES,
    Call,
    forwards,
    sizes,
    step_name,
)
from cgverify.verification.judge import Judge, uncompared
from cgverify.verification.observe_cell import Reference, observe_prompt_cell, variant_of

LONGEST = 12
"""The calls of a sequence."""
SHRINK_SECONDS = 30
"""How long a failure is shrunk after the time of the hunt is over."""
KINDS = ("attn", "block", "mlp", "embed", "ln1", "ln_final", "unembed")
"""The components that are called; the others are parts of them."""


class Example(Record):
    """A sequence of calls on one component."""

    cell: Cell
    calls: tuple[Call, ...]

    def of(self, source: Source, model: str, candidate: str, seed: int) -> Example:
        """Return the same calls on the component of a candidate, which may be another one.

        Raises:
            UsageError: the checkpoint has no such component.
        """
        cell = target(source, model, candidate, self.cell.component, self.cell.dtype, seed)
        return self.model_copy(update={"cell": cell})


class Subject:
    """The booted candidate and the reference of one component in one dtype. Neither is ever called here."""

    def __init__(self, source: Source, cell: Cell) -> None:
        window = Window(source)
        window.show(cell.kind if cell.layer is None else cell.layer)
        variant = variant_of(cell)
        model = window.reference(variant)
        set_attention(model, "eager")
        self.cell = cell
        self.reference = Reference(model, reference_parameters(model), source.config, window.spread())
        self.bridge = find_candidate(cell.candidate).boot(window.model(variant))

    def judge(self, calls: Sequence[Call]) -> CellResult:
        """Run calls one after the other on this instance, and judge each by its stages."""
        cell, config = self.cell, self.reference.config
        dtype = getattr(torch, cell.dtype)
        spec = InputSpec(cell.seed, 1, 4, config.n_positions, dtype, self.reference.spread, n_heads=config.n_head)
        inputs = forwards(calls, COMPONENTS[cell.kind], config, spec)
        CASES[NAME] = CASE  # not a case that a plan can have
        try:
            observed = observe_prompt_cell(cell, self.reference, self.bridge, inputs, inputs)
            (result,) = Judge().results([observed], self.reference.parameters)
        finally:
            del CASES[NAME]
        return result


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
    elif component not in (*BEFORE, *AFTER):
        layer = -1
    if kind not in KINDS or (layer is not None and not 0 <= layer < source.config.n_layer):
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
    return Subject(source, target(source, model, bridge, component, dtype, seed)).judge(calls)


@dataclass
class Hunt:
    """A hunt in progress, and what it has covered."""

    source: Source
    cells: Sequence[Cell]
    seconds: float
    seed: int
    sequences: int = 0
    calls: int = 0
    shapes: set[tuple[str, int, int]] = field(default_factory=set)
    modes: Counter[str] = field(default_factory=Counter)
    found: tuple[Example, CellResult] | None = None
    """The smallest sequence that failed."""
    _subjects: dict[str, Subject] = field(default_factory=dict)

    def run(self, first: Example | None = None) -> None:
        """Hunt until the time is over, or a failure is found and shrunk.

        Args:
            first: a sequence that is tried before all others, and not shrunk again.

        Raises:
            CgverifyError: something could not be run.
        """
        from hypothesis import HealthCheck, Phase, Verbosity, given, settings
        from hypothesis import seed as seeded

        if first is not None and self._fails(first):
            return
        deadline = time.monotonic() + self.seconds

        def attempt(example: Example) -> None:
            if time.monotonic() > deadline + (SHRINK_SECONDS if self.found else 0):
                raise _TimeIsUpError
            assert not self._fails(example)

        hunt = settings(
            max_examples=10**8,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
        )(seeded(self.seed)(given(_examples(self.cells))(attempt)))  # type: ignore[no-untyped-call]
        try:
            hunt()
        except (_TimeIsUpError, AssertionError, BaseExceptionGroup) as ended:
            if self.found is None and not isinstance(ended, _TimeIsUpError):
                raise

    def _fails(self, example: Example) -> bool:
        subject = self._subjects.get(example.cell.id)
        if subject is None:
            subject = self._subjects[example.cell.id] = Subject(self.source, example.cell)
            gc.collect()
            gc.freeze()
        result = in_fork(lambda: subject.judge(example.calls), example.cell)
        self.sequences += 1
        judged = {finding.step for finding in result.findings}  # neither what follows an exception, nor past the table
        calls = [call for number, call in enumerate(example.calls, start=1) if step_name(number) in judged]
        self.calls += len(calls)
        self.shapes |= {(example.cell.kind, call.batch, call.tokens) for call in calls}
        self.modes.update(call.mode for call in calls)
        errors = [one.message for one in result.findings if one.verdict is Verdict.ERROR]
        if errors and not any(one.verdict.fails for one in result.findings):
            raise CgverifyError(f"{example.cell.component} after {', '.join(map(str, example.calls))}: {errors[0]}")
        fails = any(one.verdict.fails for one in result.findings)
        if fails and (self.found is None or _size(example) <= _size(self.found[0])):
            self.found = example, result
        return fails


class _TimeIsUpError(BaseException):
    """Passes through Hypothesis, which would take an Exception for a failure."""


def _size(example: Example) -> tuple[int, int, int]:
    """Return what makes one example smaller than another: calls, tokens, and everything that is not usual."""
    calls = example.calls
    return len(calls), sum(call.batch * call.tokens for call in calls), sum(len(str(call)) for call in calls)


def _examples(cells: Sequence[Cell]) -> Any:
    from hypothesis import strategies as st

    def mostly(usual: Any, *others: Any) -> Any:
        return st.sampled_from([usual] * (2 * len(others)) + list(others))

    call = st.builds(
        Call,
        batch=st.sampled_from([1] * 6 + [2] * 4 + [3, 3, 4, 5]),
        tokens=st.sampled_from(list(sizes())),
        cache=mostly(False, True),
        seed=mostly(0, 1, 2),
        values=mostly(*VALUES),
        positions=mostly(*POSITIONS),
        by_row=mostly(False, True),
        mask=mostly(*MASKS),
        span=mostly(*SPANS),
        mode=mostly(*MODES),
        variant=st.sampled_from([0] * 4 + list(range(1, 80))),
    )

    def with_repetitions(drawn: list[Call | int]) -> tuple[Call, ...]:
        calls: list[Call] = []
        for one in drawn:
            calls += [one] if isinstance(one, Call) else calls[one : one + 1]
        return tuple(calls)

    listed = st.lists(st.one_of(call, call, st.integers(0, 2)), min_size=1, max_size=LONGEST)
    weighted = [cell for cell in cells for _ in range({"attn": 4, "block": 3, "mlp": 2}.get(cell.kind, 1))]
    calls = listed.map(with_repetitions).filter(bool)
    return st.builds(Example, cell=st.sampled_from(weighted), calls=calls)


KILLED = -9
"""The exit code of a process that SIGKILL ended, a name that Windows lacks."""


def can_fork() -> bool:
    """Whether this system can fork a process, which `in_fork` needs. Windows cannot."""
    return hasattr(os, "fork")


def in_fork(run: Callable[[], CellResult], cell: Cell) -> CellResult:
    """Return what `run` returns in a forked process. One that a candidate kills is a failure of the candidate."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there are no other threads that hold locks
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(_result(run, cell), pipe)
        finally:
            os._exit(0)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not answer:
        code = os.waitstatus_to_exitcode(status)
        message = f"the process of the candidate ended without an answer (exit code {code})"
        # The system kills what takes too much memory, which is no fault of a candidate.
        return uncompared([cell], Verdict.ERROR if code == KILLED else Verdict.DIVERGED, message)[0]
    result: CellResult = pickle.loads(answer)
    return result


def _result(run: Callable[[], CellResult], cell: Cell) -> CellResult:
    try:
        return run()
    except Exception as error:  # of this package: reported by the parent process
        return uncompared([cell], Verdict.ERROR, f"{type(error).__name__}: {error}")[0]
