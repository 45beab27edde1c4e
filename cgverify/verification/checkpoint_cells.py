"""A plan -> findings, one batch after another in this process.

The order is the weights': a view of the window after another, in it every setting, in it every candidate, so that a
checkpoint is read once whatever is asked of it. A prompt's cells come last (`cgverify/verification/prompt_cells.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby

import torch

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant, Window, refusal
from cgverify.common.errors import CandidateError, DeviceError, WeightsError
from cgverify.common.records import Cell, CellResult, Prompt, RotaryDim, Verdict
from cgverify.observe.candidate import Candidate, visit
from cgverify.plan.batches import group_into_batches
from cgverify.plan.cells import weights_view
from cgverify.verification import prompt_cells as prompted
from cgverify.verification.cell import (
    Blame,
    CandidateFailedError,
    Keep,
    Reference,
    candidate_failed,
    judge_cells,
    keep_nothing,
    not_run,
    observe_cell,
)
from cgverify.verification.diagnosis.sentence import sentence

Progress = Callable[[Cell | None], None]
"""Told of each cell before it is observed, and None before what was observed is judged."""


def unwatched(_: Cell | None) -> None:
    pass


def run(
    cells: Sequence[Cell],
    source: Source,
    candidates: Mapping[str, Candidate],
    keep: Keep = keep_nothing,
    prompt: Prompt | None = None,
    blame: Blame = sentence,
) -> Iterator[CellResult]:
    """Verify cells of one checkpoint, each result as it is found.

    Args:
        candidates: by the name that cells have for them.
        keep: what is done with the tensors of findings.
        prompt: that of the cells which have one.
        blame: says why a cell failed.
    """
    reader = Reader(source, prompt, blame)
    for batch in group_into_batches(cells):
        yield from reader.verify(batch, candidates, keep)


class Reader:
    """A checkpoint's window, and the cells that are verified through it, a batch at a time.

    Weights stay in view from one batch to the next where both are of the same layer.
    """

    def __init__(self, source: Source, prompt: Prompt | None = None, blame: Blame = sentence) -> None:
        self._source = source
        self._prompt = prompt
        self._blame = blame
        self._window = Window(source)
        self._spread = 1.0
        self._refusals: dict[RotaryDim, str | None] = {}

    def verify(
        self,
        cells: Sequence[Cell],
        candidates: Mapping[str, Candidate],
        keep: Keep = keep_nothing,
        watch: Progress = unwatched,
    ) -> Iterator[CellResult]:
        """The results of one batch's cells."""
        dtype, device, rotary_dim = cells[0].dtype, cells[0].device, cells[0].rotary_dim
        if (reason := self._refusal(rotary_dim)) is not None:
            yield from not_run(cells, Verdict.UNSUPPORTED, reason)
            return
        try:
            require_devices([device])
            if cells[0].prompt:
                assert self._prompt is not None, "planned with one"
                watch(cells[0])
                yield from prompted.run(cells, self._window, self._source, candidates, self._prompt, keep)
                return
            if self._window.view != weights_view(cells[0]):
                self._window.show(weights_view(cells[0]))
                self._spread = self._window.spread()
        except (DeviceError, WeightsError) as error:
            yield from not_run(cells, Verdict.ERROR, str(error))
            return
        setting = ModelVariant(getattr(torch, dtype), torch.device(device), rotary_dim)
        reference = Reference(self._window.reference(setting), self._source.config, self._spread)
        for name, of_candidate in groupby(sorted(cells, key=_candidate), key=_candidate):
            yield from self._of_candidate(candidates[name], list(of_candidate), reference, setting, keep, watch)

    @visit()
    def _of_candidate(
        self,
        candidate: Candidate,
        cells: list[Cell],
        reference: Reference,
        setting: ModelVariant,
        keep: Keep,
        watch: Progress,
    ) -> list[CellResult]:
        watch(cells[0])
        try:
            bridge = candidate.boot(self._window.model(setting))
        except (CandidateError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a candidate may fail in any way, and that is a finding
            return candidate_failed(cells, CandidateFailedError("boot", error))
        results, observed = [], []
        for cell in cells:
            watch(cell)
            try:
                observed.append(observe_cell(cell, reference, bridge))
            except CandidateFailedError as error:
                results += candidate_failed([cell], error)
        watch(None)
        return judge_cells(observed, reference.parameters, keep, self._blame) + results

    def _refusal(self, rotary_dim: RotaryDim) -> str | None:
        if rotary_dim not in self._refusals:
            self._refusals[rotary_dim] = refusal(self._source.config, rotary_dim)
        return self._refusals[rotary_dim]


def _candidate(cell: Cell) -> str:
    return cell.candidate


def require_devices(devices: Iterable[str]) -> None:
    """Raise DeviceError for the first device that this machine has not."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in devices:
        if not present[device]:
            raise DeviceError(
                f"This machine has no {device} device: choose another --device, or run where there is one."
            )
