"""The cells of a prompt: its hidden states go through the window with the weights, a view after another.

Views that hold no cell are passed through on the way to one that does, and so are cells that a run before this one has
finished: they are run, and not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant, WeightsView, Window
from cgverify.common.errors import CandidateError, WeightsError
from cgverify.common.records import Cell, CellResult, Prompt, RotaryDim, Verdict
from cgverify.observe.candidate import Candidate, visit
from cgverify.plan.cells import WHOLE
from cgverify.verification import cell as one_cell
from cgverify.verification import whole_model as whole
from cgverify.verification.check import ObservedCell
from cgverify.verification.prompt_pass import Journey, on_the_way, view_of, views

_Setting = tuple[str, str, RotaryDim]


def run(
    cells: Sequence[Cell],
    window: Window,
    source: Source,
    candidates: Mapping[str, Candidate],
    prompt: Prompt,
    keep: one_cell.Keep,
) -> Iterator[CellResult]:
    """Verify cells of one checkpoint and one prompt, whose rotary_dim the reference does not refuse.

    Args:
        candidates: by the name that cells have for them.
        keep: what is done with the tensors of findings.
    """
    order: list[WeightsView] = [*views(source.config.n_layer), *WHOLE]
    places = {view: place for place, view in enumerate(order)}
    every = sorted([*cells, *on_the_way(cells, source.config.n_layer)], key=_turn)
    journeys = {setting: Journey(prompt, list(group)) for setting, group in groupby(every, key=_setting)}
    work = _Work(window, source, candidates, keep, journeys, {cell.id for cell in cells})
    last = max((places[view_of(cell)] for cell in every), default=-1)
    for view in order[: last + 1]:
        here = [cell for cell in every if view_of(cell) == view]
        yield from work.whole(here) if view in WHOLE else work.view(view, here)


@dataclass(frozen=True)
class _Work:
    """What all views of a run share."""

    window: Window
    source: Source
    candidates: Mapping[str, Candidate]
    keep: one_cell.Keep
    journeys: Mapping[_Setting, Journey]
    judged: set[str]
    """Ids of the cells that were asked for."""

    def view(self, view: WeightsView, cells: list[Cell]) -> Iterator[CellResult]:
        """Cells in one view, which every journey passes."""
        try:
            self.window.show(view)
        except WeightsError as error:
            for stranded in self.journeys.values():
                stranded.lost = str(error)
            yield from one_cell.not_run(self._asked(cells), Verdict.ERROR, str(error))
            return
        for (dtype, device, rotary_dim), journey in self.journeys.items():
            setting = ModelVariant(getattr(torch, dtype), torch.device(device), rotary_dim)
            reference = one_cell.Reference(self.window.model(setting), self.source.config, spread=1.0)
            if journey.lost is None:
                journey.enter(view, reference)
            own = [cell for cell in cells if _setting(cell) == (dtype, device, rotary_dim)]
            refused = {cell: why for cell in own if (why := journey.refusal(cell))}
            for cell in self._asked(refused):
                yield from one_cell.not_run([cell], *refused[cell])
            ready = [cell for cell in own if cell not in refused]
            for name, of_candidate in groupby(ready, key=lambda cell: cell.candidate):
                yield from self._candidate(self.candidates[name], list(of_candidate), reference, setting, journey)

    def whole(self, cells: list[Cell]) -> Iterator[CellResult]:
        """Cells of the whole model."""
        for setting, group in groupby(cells, key=_setting):
            journey = self.journeys[setting]
            yield from whole.run(list(group), self.window, self.source, self.candidates, journey, self.keep)

    @visit()
    def _candidate(
        self,
        candidate: Candidate,
        cells: list[Cell],
        reference: one_cell.Reference,
        setting: ModelVariant,
        journey: Journey,
    ) -> list[CellResult]:
        try:
            bridge = candidate.boot(self.window.model(setting))
        except (CandidateError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a candidate may fail in any way, and that is a finding
            failure = one_cell.CandidateFailedError("boot", error)
            for cell in cells:
                journey.stop(cell, error)
            return one_cell.candidate_failed(self._asked(cells), failure)
        results, observed = [], []
        for cell in cells:
            try:
                observed.append(_observe(cell, reference, bridge, journey))
            except one_cell.CandidateFailedError as error:
                results += one_cell.candidate_failed(self._asked([cell]), error)
        asked = [one for one in observed if one.cell.id in self.judged]
        return one_cell.judge_cells(asked, reference.parameters, self.keep) + results

    def _asked(self, cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if cell.id in self.judged]


def _observe(
    cell: Cell, reference: one_cell.Reference, bridge: torch.nn.Module, journey: Journey | None
) -> ObservedCell:
    if journey is None or not cell.prompt:
        return one_cell.observe_cell(cell, reference, bridge)
    given = journey.given(cell)
    try:
        observed = one_cell.observe_cell(cell, reference, bridge, given)
    except one_cell.CandidateFailedError as error:
        journey.stop(cell, error.__cause__ or error)
        raise
    observed.beside = journey.leave(observed)
    return observed


def _turn(cell: Cell) -> tuple[str, ...]:
    """The order within a view."""
    return cell.dtype, cell.device, str(cell.rotary_dim), cell.candidate


def _setting(cell: Cell) -> _Setting:
    return cell.dtype, cell.device, cell.rotary_dim
