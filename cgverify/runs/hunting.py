"""Hunt for a counterexample on local processes, and keep the hunt in a run folder.

The folder is that of a run (`cgverify.runs.folder`), with a cell for each component and dtype. The counterexample is in
`counterexample.json`, which the next hunt in the folder tries first, and in `counterexample.py`. A folder with a hunt
is used again: its run is replaced, and its counterexample is kept until there is another.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cgverify.checkpoint.lookup import FoundCheckpoints, find_checkpoint
from cgverify.common.errors import CgverifyError, RunFolderError
from cgverify.common.numerics import pin_numerics
from cgverify.common.records import Cell, CellResult, Run, WholePlan
from cgverify.observe.candidate import find_candidate
from cgverify.runs.differences import CANDIDATE_SOURCES
from cgverify.runs.folder import RunFolder
from cgverify.runs.prepare import describe_run
from cgverify.runs.reading import PlannedCell, is_occupied, read_run, require_new
from cgverify.verification.fuzz.drawing import Example
from cgverify.verification.fuzz.hunt import Covered, Hunt, subjects_of
from cgverify.verification.fuzz.shrinking import size
from cgverify.verification.fuzz.subject import KINDS, target

COMMAND = "fuzz"
EXAMPLE = "counterexample.json"
OF_A_HUNT = ("run.json", "plan.jsonl", "findings.jsonl", "findings.csv", "summary.csv", "timings.csv")
SEEDS = 1 << 32
"""The distance between the seeds of two processes."""


@dataclass(frozen=True)
class HuntRequest:
    """What is hunted, and how."""

    model: str
    bridge: str
    components: Sequence[str]
    """Empty is every kind of component in the first layer, and attention and block in the last."""
    dtypes: Sequence[str]
    minutes: float
    seed: int
    jobs: int


@dataclass(frozen=True)
class Hunted:
    """A hunt that is over."""

    run: Run
    results: Sequence[CellResult]
    """Of each component and dtype that was called: the worst finding of each tap; of the one that failed, the
    counterexample's."""
    interrupted: bool


def hunt(request: HuntRequest, path: Path) -> Hunted:
    """Hunt for a sequence of calls that a bridge fails, and keep it in a run folder.

    Raises:
        UsageError: the bridge, the checkpoint or a component cannot be found.
        RunFolderError: the folder has another run, or a damaged example.
        CgverifyError: something could not be run.
    """
    numerics = pin_numerics(1)  # libraries that run several threads cannot be forked
    found = find_checkpoint(request.model, "auto")
    ((source,), (checkpoint,)) = found.sources.values(), found.checkpoints.values()
    components = request.components or _usual_components(source.config.n_layer)
    asked = [(component, dtype) for component in components for dtype in request.dtypes]
    cells = [target(source, checkpoint.name, request.bridge, *one, request.seed) for one in asked]
    first = _kept_example(path)
    if first is not None:
        component, dtype = first.cell.component, first.cell.dtype
        cell = target(source, checkpoint.name, request.bridge, component, dtype, request.seed)
        first = first.model_copy(update={"cell": cell})
        cells += [cell] if cell not in cells else []
    run = _description(request, found, path, numerics).model_copy(update={"plan": WholePlan.of(cells)})
    folder = _folder(path, run, cells)
    try:
        if first is not None:
            _keep_example(path, first, request.model)
        subjects = subjects_of(source, cells)
        gc.collect()
        gc.freeze()
        one = Hunt(subjects, cells, request.seed)
        interrupted = False
        if first is None or not one.fails(first):
            interrupted = _hunt_on_processes(one, request)
        results = one.covered.results
        if one.found is not None:
            _keep_example(path, one.found, request.model)
            failing = one.explain(one.found)
            results = [each for each in results if each.cell != failing.cell] + [failing]
        results.sort(key=lambda result: cells.index(result.cell))
        run = run.model_copy(update={"settings": run.settings | one.covered.in_words | _described(one.found, request)})
        folder.describe(run)
        for result in results:
            folder.append(result)
    finally:
        folder.close()
    return Hunted(run, results, interrupted)


def _usual_components(layers: int) -> list[str]:
    """Return what is hunted if no component is named. Keys of a cache are found by the layer."""
    last = layers - 1
    return [*KINDS, f"blocks.{last}.attn", f"blocks.{last}"] if last else [*KINDS]


def _hunt_on_processes(one: Hunt, request: HuntRequest) -> bool:
    """Hunt in forked processes, and add to a hunt what they covered and found. Return whether Ctrl-C ended them."""
    context = multiprocessing.get_context("fork")
    over = context.Event()
    pipes = []
    for number in range(request.jobs):
        ours, theirs = context.Pipe(duplex=False)
        own = replace(
            one, covered=Covered(), seed=request.seed + number * SEEDS, is_over=over.is_set, on_found=over.set
        )
        context.Process(target=_work, args=(own, 60 * request.minutes, theirs)).start()
        theirs.close()
        pipes.append(ours)
    interrupted = False
    for pipe in pipes:
        answer = None
        while answer is None:
            try:
                answer = pipe.recv()
            except KeyboardInterrupt:  # which the processes get as well
                interrupted = True
            except EOFError:
                answer = CgverifyError("A process of the hunt was ended by the system.")
        if isinstance(answer, CgverifyError):
            over.set()
            raise answer
        covered, example = answer
        one.covered.add(covered)
        if example is not None and (one.found is None or size(example.calls) < size(one.found.calls)):
            one.found = example
    return interrupted


def _work(own: Hunt, seconds: float, pipe: Connection) -> None:
    answer: object
    try:
        with contextlib.suppress(KeyboardInterrupt):
            own.run(seconds)
        answer = own.covered, own.found
    except CgverifyError as error:
        answer = error
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe.send(answer)


# --- the folder -------------------------------------------------------------------------------------------------------


def _description(request: HuntRequest, found: FoundCheckpoints, path: Path, numerics: dict[str, Any]) -> Run:
    settings = {
        "model": request.model,
        "candidates": [request.bridge],
        "components": [*request.components],
        "dtypes": [*request.dtypes],
        "minutes": request.minutes,
        "seeds": [request.seed],
        "output": str(path),
        CANDIDATE_SOURCES: {request.bridge: find_candidate(request.bridge).source},
    }
    return describe_run(COMMAND, request.model, found, settings, numerics)


def _described(example: Example | None, request: HuntRequest) -> dict[str, Any]:
    if example is None:
        return {"counterexample": None}
    calls = [f"call {number}: {call}" for number, call in enumerate(example.calls, start=1)]
    where = f"{example.cell.component} of {request.bridge} in {example.cell.dtype}"
    return {"counterexample": {"where": where, "calls": calls, "python": example.python(request.model)}}


def _kept_example(path: Path) -> Example | None:
    """Return the example of an earlier hunt in a folder.

    Raises:
        RunFolderError: the folder has another run, or the example is damaged.
    """
    if not is_occupied(path):
        return None
    if not (path / "run.json").exists() or read_run(path)[0].command != COMMAND:
        require_new(path)
    try:
        return Example.model_validate_json((path / EXAMPLE).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise RunFolderError(f"{path / EXAMPLE} is damaged: delete it, or give another --output.") from None


def _folder(path: Path, run: Run, cells: Sequence[Cell]) -> RunFolder:
    """Return a new run in a folder, without the earlier hunt."""
    for name in (*OF_A_HUNT, EXAMPLE, "counterexample.py"):
        (path / name).unlink(missing_ok=True)
    return RunFolder.create(path, run, [PlannedCell(place=place, cell=cell) for place, cell in enumerate(cells)])


def _keep_example(path: Path, example: Example, model: str) -> None:
    (path / EXAMPLE).write_text(example.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (path / "counterexample.py").write_text(example.python(model), encoding="utf-8")
