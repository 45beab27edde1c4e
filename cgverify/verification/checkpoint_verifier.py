"""Verify the cells of one checkpoint, one batch after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby

import torch
from torch import nn

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window, refusal
from cgverify.common.errors import DeviceError, WeightsError
from cgverify.common.records import Cell, CellResult, Prompt, RotaryDim, Verdict
from cgverify.observe.candidate import Candidate, visit
from cgverify.plan.batches import group_into_batches
from cgverify.plan.cells import weights_view
from cgverify.verification.judge import Judge, failed_candidates, uncompared
from cgverify.verification.observe_cell import Reference, observe_candidate, observe_cell, variant_of
from cgverify.verification.observed import ObservedCell
from cgverify.verification.prompt_cells import verify_prompt_cells

Watch = Callable[[Cell | None], None]
"""Called with each cell before it is observed, and with None before the observed cells are judged."""


class CheckpointVerifier:
    """An open checkpoint that verifies one batch of cells at a time.

    The weights in view stay in memory from one batch to the next if both need the same ones.
    """

    def __init__(
        self,
        source: Source,
        candidates: Mapping[str, Candidate],
        prompt: Prompt | None = None,
        judge: Judge = Judge(),  # noqa: B008 (a frozen record)
    ) -> None:
        """
        Args:
            candidates: by the name that cells give them.
            prompt: for the cells of a prompt.
            judge: whether tensors are kept and sentences made.
        """
        self._source, self._candidates, self._prompt, self._judge = source, candidates, prompt, judge
        self._window = Window(source)
        self._spread = 1.0
        self._refusal = cache(self._reference_refusal)

    def verify_all(self, cells: Sequence[Cell]) -> Iterator[CellResult]:
        """Yield the results of any cells of the checkpoint."""
        for batch in group_into_batches(cells):
            yield from self.verify(batch)

    def verify(self, cells: Sequence[Cell], watch: Watch = lambda _: None) -> Iterator[CellResult]:
        """Yield the results of one batch of cells."""
        first = cells[0]
        reason = self._refusal(first.rotary_dim)
        if reason is not None:
            yield from uncompared(cells, Verdict.UNSUPPORTED, reason)
            return
        try:
            require_devices([first.device])
            if first.prompt:
                assert self._prompt is not None, "a prompt's cells are planned with a prompt"
                watch(first)
                yield from verify_prompt_cells(
                    cells, self._source, self._window, self._candidates, self._prompt, self._judge
                )
                return
            if self._window.view != weights_view(first):
                self._window.show(weights_view(first))
                self._spread = self._window.spread()
        except (DeviceError, WeightsError) as error:
            yield from uncompared(cells, Verdict.ERROR, str(error))
            return
        reference = Reference(self._window.reference(variant_of(first)), self._source.config, self._spread)
        for name, own in groupby(sorted(cells, key=_candidate), key=_candidate):
            yield from self._verify_candidate(self._candidates[name], list(own), reference, watch)

    @visit()
    def _verify_candidate(
        self, candidate: Candidate, cells: Sequence[Cell], reference: Reference, watch: Watch
    ) -> list[CellResult]:
        def observe(cell: Cell, bridge: nn.Module) -> ObservedCell:
            watch(cell)
            return observe_cell(cell, reference, bridge)

        watch(cells[0])
        observed, failures = observe_candidate(candidate, self._window, cells, observe)
        watch(None)
        return self._judge.results(observed, reference.parameters) + failed_candidates(failures)

    def _reference_refusal(self, rotary_dim: RotaryDim) -> str | None:
        return refusal(self._source.config, rotary_dim)


def _candidate(cell: Cell) -> str:
    return cell.candidate


def require_devices(devices: Iterable[str]) -> None:
    """Raise DeviceError for the first device that this machine does not have."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in devices:
        if not present[device]:
            raise DeviceError(
                f"This machine has no {device} device: choose another --device, or run where there is one."
            )
