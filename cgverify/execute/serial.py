"""A plan -> findings, one cell after another in this process.

The order is the weights': a view of the window after another, in it every setting, in it every candidate, so that a
checkpoint is read once whatever is asked of it. Where there is a prompt, hidden states go along: views that hold no
cell are then passed through on the way to one that does, and so are those that a run before this one has finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from cgverify import verify, whole
from cgverify.candidate import Candidate
from cgverify.checking import Observed
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Setting, View, Window, refusal
from cgverify.errors import CandidateError, DeviceError, WeightsError
from cgverify.journey import Journey, on_the_way, view_of, views
from cgverify.plan import WHOLE
from cgverify.records import Cell, CellResult, Prompt, RotaryDim, Verdict

_Setting = tuple[str, str, RotaryDim]


def run(
    cells: Sequence[Cell],
    source: Source,
    candidates: Mapping[str, Candidate],
    keep: verify.Keep = verify.keep_nothing,
    prompt: Prompt | None = None,
) -> Iterator[CellResult]:
    """Verify cells of one checkpoint, each result as it is found.

    Args:
        candidates: by the name that cells have for them.
        keep: what is done with the tensors of findings.
        prompt: that of the cells which have one.
    """
    refusals = {dim: refusal(source.config, dim) for dim in {cell.rotary_dim for cell in cells}}
    for cell in cells:
        if (reason := refusals[cell.rotary_dim]) is not None:
            yield from verify.not_run([cell], Verdict.UNSUPPORTED, reason)
    possible = [cell for cell in cells if refusals[cell.rotary_dim] is None]
    passing = list(on_the_way(possible, source.config.n_layer))
    prompted = [*(cell for cell in possible if cell.prompt), *passing]
    journeys = {}
    if prompt is not None:
        for setting, group in groupby(sorted(prompted, key=_in_text), key=_setting):
            journeys[setting] = Journey(prompt, list(group))
    work = _Work(Window(source), source, candidates, keep, journeys, {cell.id for cell in possible})
    order: list[View] = [*views(source.config.n_layer), *WHOLE]
    places = {view: place for place, view in enumerate(order)}
    last = max((places[view_of(cell)] for cell in prompted), default=-1)
    turns = sorted([*possible, *passing], key=lambda cell: (places[view_of(cell)], *_in_text(cell)))
    in_view = {view: list(group) for view, group in groupby(turns, key=view_of)}
    for view in order:
        here = in_view.get(view, [])
        if view in WHOLE:
            yield from work.whole(here)
        elif here or places[view] <= last:
            yield from work.view(view, here, journeys if places[view] <= last else {})


@dataclass(frozen=True)
class _Work:
    """What all views of a run share."""

    window: Window
    source: Source
    candidates: Mapping[str, Candidate]
    keep: verify.Keep
    journeys: Mapping[_Setting, Journey]
    judged: set[str]
    """Ids of the cells that were asked for."""

    def view(self, view: View, cells: list[Cell], passing: Mapping[_Setting, Journey]) -> Iterator[CellResult]:
        """Cells in one view, and the journeys that pass it."""
        try:
            self.window.show(view)
        except WeightsError as error:
            for stranded in passing.values():
                stranded.lost = str(error)
            yield from verify.not_run(self._asked(cells), Verdict.ERROR, str(error))
            return
        spread = self.window.spread()
        by_setting = {setting: list(group) for setting, group in groupby(cells, key=_setting)}
        for dtype, device, rotary_dim in dict.fromkeys([*by_setting, *passing]):
            setting = Setting(getattr(torch, dtype), torch.device(device), rotary_dim)
            reference = verify.Reference(self.window.model(setting), self.source.config, spread)
            journey = passing.get((dtype, device, rotary_dim))
            ready = by_setting.get((dtype, device, rotary_dim), [])
            if journey is not None:
                if journey.lost is None:
                    journey.enter(view, reference)
                refused = {cell: why for cell in ready if cell.prompt and (why := journey.refusal(cell))}
                ready = [cell for cell in ready if cell not in refused]
                for cell in self._asked(refused):
                    yield from verify.not_run([cell], *refused[cell])
            for name, of_candidate in groupby(ready, key=lambda cell: cell.candidate):
                yield from self._candidate(self.candidates[name], list(of_candidate), reference, setting, journey)

    def whole(self, cells: list[Cell]) -> Iterator[CellResult]:
        """Cells of the whole model."""
        for setting, group in groupby(cells, key=_setting):
            journey = self.journeys[setting]
            yield from whole.run(list(group), self.window, self.source, self.candidates, journey, self.keep)

    def _candidate(
        self,
        candidate: Candidate,
        cells: list[Cell],
        reference: verify.Reference,
        setting: Setting,
        journey: Journey | None,
    ) -> list[CellResult]:
        try:
            bridge = candidate.boot(self.window.model(setting))
        except CandidateError:
            raise
        except (Exception, SystemExit) as error:  # a candidate may fail in any way, and that is a finding
            failure = verify.CandidateFailedError("boot", error)
            for cell in cells:
                if journey is not None and cell.prompt:
                    journey.stop(cell, error)
            return verify.candidate_failed(self._asked(cells), failure)
        results, observed = [], []
        for cell in cells:
            try:
                observed.append(_observe(cell, reference, bridge, journey))
            except verify.CandidateFailedError as error:
                results += verify.candidate_failed(self._asked([cell]), error)
        asked = [one for one in observed if one.cell.id in self.judged]
        return verify.judge(asked, reference.parameters, self.keep) + results

    def _asked(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell.id in self.judged]


def _observe(cell: Cell, reference: verify.Reference, bridge: torch.nn.Module, journey: Journey | None) -> Observed:
    if journey is None or not cell.prompt:
        return verify.observe(cell, reference, bridge)
    given = journey.given(cell)
    try:
        observed = verify.observe(cell, reference, bridge, given)
    except verify.CandidateFailedError as error:
        journey.stop(cell, error.__cause__ or error)
        raise
    observed.beside = journey.leave(observed)
    return observed


def _in_text(cell: Cell) -> tuple[str, ...]:
    """What cells of one view are sorted by."""
    return cell.dtype, cell.device, str(cell.rotary_dim), cell.candidate


def _setting(cell: Cell) -> _Setting:
    return cell.dtype, cell.device, cell.rotary_dim


def require_devices(devices: Iterable[str]) -> None:
    """Raise DeviceError for the first device that this machine has not."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in devices:
        if not present[device]:
            raise DeviceError(
                f"This machine has no {device} device: choose another --device, or run where there is one."
            )
