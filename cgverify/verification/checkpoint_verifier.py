"""Verify the cells of one checkpoint, one batch after another, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from torch import nn

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import Window, refusal
from cgverify.common.devices import require_devices, require_dtype
from cgverify.common.errors import CgverifyError, StorageError, UsageError, WeightsError
from cgverify.common.records import Cell, CellResult, Prompt, RotaryDim, Verdict, WeightsView
from cgverify.observe.candidate import Candidate, free_bridge_afterwards
from cgverify.observe.fault import reason
from cgverify.observe.generations import refused_attention
from cgverify.observe.run import reference_parameters, set_attention
from cgverify.oracle.shortcuts import NO_SHORTCUTS, Shortcuts
from cgverify.plan.batches import Watch, group_into_batches, unwatched
from cgverify.plan.cases import WHOLE
from cgverify.plan.cells import weights_view
from cgverify.verification.judge import DEFAULT_JUDGE, Judge, uncompared
from cgverify.verification.observe_cell import Reference, observe_candidate, observe_cell, variant_of
from cgverify.verification.observed import ObservedCell
from cgverify.verification.prompt_pass import PromptPass, view_of, views
from cgverify.verification.whole_model import verify_whole_model


class CheckpointVerifier:
    """An open checkpoint that verifies one batch of cells at a time.

    The weights in view stay in memory from one batch to the next if both need the same ones.
    """

    def __init__(
        self,
        source: Source,
        candidates: Mapping[str, Candidate],
        prompt: Prompt | None = None,
        judge: Judge = DEFAULT_JUDGE,
        shortcuts: Shortcuts = NO_SHORTCUTS,
    ) -> None:
        """
        Args:
            candidates: by the name that cells give them.
            prompt: for the cells of a prompt.
            shortcuts: that products of both sides may take.
        """
        self._source, self._candidates, self._prompt, self._judge = source, candidates, prompt, judge
        self._shortcuts = shortcuts
        self._window = Window(source)
        self._spreads: dict[WeightsView, float] = {}
        self._refusals: dict[RotaryDim, str | None] = {}

    def verify_all(self, cells: Sequence[Cell]) -> Iterator[CellResult]:
        """Yield the results of any cells of the checkpoint."""
        for batch in group_into_batches(cells):
            yield from self.verify(batch)

    def verify(self, cells: Sequence[Cell], watch: Watch = unwatched) -> Iterator[CellResult]:
        """Yield the results of one batch of cells."""
        first = cells[0]
        try:
            refused = self._refusal(first.rotary_dim) or refused_attention(first.attention)
            if refused is not None:
                yield from uncompared(cells, Verdict.UNSUPPORTED, refused)
                return
            require_devices([first.device])
            require_dtype(variant_of(first).device, variant_of(first).dtype)
            reference = None if first.prompt else self._reference(weights_view(first), first)
        except CgverifyError as error:
            yield from uncompared(cells, Verdict.ERROR, str(error))
            return
        if reference is None:
            yield from self._verify_prompt(cells, watch)
            return
        for _, own in groupby(sorted(cells, key=_candidate), key=_candidate):
            yield from self._verify_candidate(list(own), reference, watch)

    def _refusal(self, rotary_dim: RotaryDim) -> str | None:
        if rotary_dim not in self._refusals:
            self._refusals[rotary_dim] = refusal(self._source.config, rotary_dim)
        return self._refusals[rotary_dim]

    def _reference(self, view: WeightsView, cell: Cell) -> Reference:
        """Return the reference with the weights of a view, in the model variant of a cell.

        Raises:
            WeightsError: a tensor cannot be read, or memory has no room for it.
        """
        if self._window.view != view:
            self._window.show(view)
        if view not in self._spreads:
            self._spreads[view] = self._window.spread()
        variant = variant_of(cell)
        model = self._window.reference(variant)
        weights = model if variant == variant.on_cpu else self._window.reference(variant.on_cpu)
        parameters = reference_parameters(weights, self._shortcuts, variant.device.type)
        set_attention(model, cell.attention)
        return Reference(model, parameters, self._source.config, self._spreads[view])

    @free_bridge_afterwards()
    def _verify_candidate(self, cells: Sequence[Cell], reference: Reference, watch: Watch) -> list[CellResult]:
        def observe(cell: Cell, bridge: nn.Module) -> ObservedCell:
            watch(cell)
            return observe_cell(cell, reference, bridge)

        watch(cells[0])
        try:
            model = self._window.model(variant_of(cells[0]))
        except WeightsError as error:
            return uncompared(cells, Verdict.ERROR, str(error))
        observed = observe_candidate(self._candidates[cells[0].candidate], model, cells, observe)
        watch(None)
        return self._judge.results(observed, reference.parameters)

    # --- a prompt's cells ---------------------------------------------------------------------------------------------

    def _verify_prompt(self, cells: Sequence[Cell], watch: Watch) -> Iterator[CellResult]:
        """Pass the prompt's hidden states through the views of the weights, and verify the cells on the way.

        In a view without a cell of its own, cells are run and not judged.
        """
        assert self._prompt is not None, "a prompt's cells are planned with a prompt"
        n_layers = self._source.config.n_layer
        prompt_pass = PromptPass(self._prompt, cells, n_layers)
        order = [*views(n_layers), *WHOLE]
        last = max(order.index(view_of(cell)) for cell in prompt_pass.cells)
        for view in order[: last + 1]:
            here = [cell for cell in prompt_pass.cells if view_of(cell) == view]
            if view in WHOLE:
                yield from verify_whole_model(
                    here,
                    self._source,
                    self._window,
                    self._candidates,
                    prompt_pass,
                    self._judge,
                    self._shortcuts,
                    watch,
                )
            else:
                yield from self._verify_prompt_in(view, here, cells[0], prompt_pass, watch)

    def _verify_prompt_in(
        self, view: WeightsView, cells: Sequence[Cell], first: Cell, prompt_pass: PromptPass, watch: Watch
    ) -> Iterator[CellResult]:
        try:
            reference = self._reference(view, first)
        except WeightsError as error:
            prompt_pass.lost = str(error)
            yield from uncompared(filter(prompt_pass.is_asked, cells), Verdict.ERROR, str(error))
            return
        if prompt_pass.lost is None:
            try:
                prompt_pass.enter(view, reference)
            except (UsageError, StorageError):  # they end the run
                raise
            except Exception as error:  # a fault of this package, memory: never the reference's
                prompt_pass.lost = reason(error)
        refusals = {cell: refused for cell in cells if (refused := prompt_pass.refusal(cell))}
        for cell, (verdict, message) in refusals.items():
            yield from uncompared(filter(prompt_pass.is_asked, [cell]), verdict, message)
        ready = [cell for cell in cells if cell not in refusals]
        for _, own in groupby(ready, key=_candidate):
            yield from self._verify_prompt_candidate(list(own), reference, prompt_pass, watch)

    @free_bridge_afterwards()
    def _verify_prompt_candidate(
        self, cells: Sequence[Cell], reference: Reference, prompt_pass: PromptPass, watch: Watch
    ) -> list[CellResult]:
        def observe(cell: Cell, bridge: nn.Module) -> ObservedCell:
            watch(prompt_pass.asked_for(cell))
            return prompt_pass.observe(cell, reference, bridge)

        watch(prompt_pass.asked_for(cells[0]))
        try:
            model = self._window.model(variant_of(cells[0]))
        except WeightsError as error:
            prompt_pass.lost = str(error)
            return uncompared(filter(prompt_pass.is_asked, cells), Verdict.ERROR, str(error))
        observed = observe_candidate(self._candidates[cells[0].candidate], model, cells, observe)
        watch(None)
        for one in observed:
            prompt_pass.stop(one)
        asked = [one for one in observed if prompt_pass.is_asked(one.cell)]
        return self._judge.results(asked, reference.parameters)


def _candidate(cell: Cell) -> str:
    return cell.candidate
