"""Verify the cells of a prompt, whose hidden states go from one view of the weights to the next.

Views without a cell of their own are passed on the way to a view that has one. The cells there are run and not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window
from cgverify.common.errors import WeightsError
from cgverify.common.records import Cell, CellResult, Prompt, Verdict
from cgverify.observe.candidate import Candidate, visit
from cgverify.plan.cells import WHOLE
from cgverify.verification.judge import Judge, failed_candidates, uncompared
from cgverify.verification.observe_cell import Reference, observe_candidate, variant_of
from cgverify.verification.prompt_pass import PromptPass, cells_on_the_way, view_of, views
from cgverify.verification.whole_model import verify_whole_model


def verify_prompt_cells(
    cells: Sequence[Cell],
    source: Source,
    window: Window,
    candidates: Mapping[str, Candidate],
    prompt: Prompt,
    judge: Judge,
) -> Iterator[CellResult]:
    """Yield the results of one batch of a prompt's cells.

    Args:
        candidates: by the name that cells give them.

    Raises:
        WeightsError: weights of the whole model that cannot be read.
    """
    asked = {cell.id for cell in cells}
    every = sorted([*cells, *cells_on_the_way(cells, source.config.n_layer)], key=_candidate)
    prompt_pass = PromptPass(prompt, every)
    order = [*views(source.config.n_layer), *WHOLE]
    last = max(order.index(view_of(cell)) for cell in every)
    for view in order[: last + 1]:
        here = [cell for cell in every if view_of(cell) == view]
        if view in WHOLE:
            yield from verify_whole_model(here, source, window, candidates, prompt_pass, judge)
            continue
        try:
            window.show(view)
        except WeightsError as error:
            prompt_pass.lost = str(error)
            yield from uncompared([cell for cell in here if cell.id in asked], Verdict.ERROR, str(error))
            continue
        reference = Reference(window.reference(variant_of(cells[0])), source.config, spread=1.0)
        if prompt_pass.lost is None:
            prompt_pass.enter(view, reference)
        refusals = {cell: reason for cell in here if (reason := prompt_pass.refusal(cell))}
        for cell, (verdict, message) in refusals.items():
            if cell.id in asked:
                yield from uncompared([cell], verdict, message)
        ready = [cell for cell in here if cell not in refusals]
        for name, own in groupby(ready, key=_candidate):
            results = _verify_candidate(candidates[name], list(own), window, reference, prompt_pass, asked, judge)
            yield from results


@visit()
def _verify_candidate(
    candidate: Candidate,
    cells: Sequence[Cell],
    window: Window,
    reference: Reference,
    prompt_pass: PromptPass,
    asked: set[str],
    judge: Judge,
) -> list[CellResult]:
    """Run a candidate's cells in one view, and return the results of those that were asked for."""
    observed, failures = observe_candidate(
        candidate, window, cells, lambda cell, bridge: prompt_pass.observe(cell, reference, bridge)
    )
    for cell, error in failures:
        prompt_pass.stop(cell, error.cause)
    return [
        *judge.results([one for one in observed if one.cell.id in asked], reference.parameters),
        *failed_candidates((cell, error) for cell, error in failures if cell.id in asked),
    ]


def _candidate(cell: Cell) -> str:
    return cell.candidate
