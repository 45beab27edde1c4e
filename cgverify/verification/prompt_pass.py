"""A prompt's hidden states on their way through the model, from one view of the weights to the next.

What is carried are hidden states `[1, seq, d_model]`: the reference's for each case, and for the case `model` also each
candidate's and those of the float64 computation without rounding. All other tensors are dropped with the view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import nn

from cgverify.common.records import Cell, Finding, Prompt, Verdict, WeightsView
from cgverify.observe.cases import CASES
from cgverify.observe.cases.case import Case
from cgverify.observe.inputs import CaseInputs, Step, block_inputs, prompt_context
from cgverify.observe.taps import Observation
from cgverify.oracle import exact
from cgverify.plan.cases import AFTER, BEFORE, WHOLE
from cgverify.verification import drift
from cgverify.verification.observe_cell import Reference, observe_prompt_cell, without_blame
from cgverify.verification.observed import CandidateFailedError, ObservedCell


def views(n_layers: int) -> tuple[WeightsView, ...]:
    """Return all views, in the order of the computation."""
    return (*BEFORE, *range(n_layers), *AFTER)


def kind_of(view: WeightsView) -> str:
    """Return the kind of the component that makes up a view."""
    return view if isinstance(view, str) else "block"


def name_of(view: WeightsView) -> str:
    """Return the bridge's name of the component that makes up a view."""
    return view if isinstance(view, str) else f"blocks.{view}"


def view_of(cell: Cell) -> WeightsView:
    """Return the view that a cell of a prompt needs."""
    return cell.kind if cell.layer is None else cell.layer


def placed(cell: Cell, view: WeightsView) -> Cell:
    """Return the cell of another view that is the same in everything else."""
    layer = view if isinstance(view, int) else None
    return Cell.model_validate(cell.model_dump() | {"layer": layer, "kind": kind_of(view)})


def cells_on_the_way(cells: Sequence[Cell], n_layers: int) -> Iterator[Cell]:
    """Yield the cells of `model` that must be run, and not judged, before the given cells of one model variant.

    For each candidate, these are the cells of all views before its last one, except those that are given.
    """
    order = [*views(n_layers), *WHOLE]
    own = [cell for cell in cells if CASES[cell.case].own_hidden_states]
    for _, group in groupby(sorted(own, key=lambda cell: cell.candidate), key=lambda cell: cell.candidate):
        given = list(group)
        here = {view_of(cell) for cell in given}
        last = max(map(order.index, here))
        yield from (placed(given[0], view) for view in order[:last] if view not in here)


class CarriedStates:
    """The hidden states that one side carries to the next view in one case, for each span of the prompt."""

    def __init__(self, prompt: Prompt, case: Case) -> None:
        assert case.spans is not None, "a case of a prompt"
        self.spans = case.spans(len(prompt.tokens))
        self.states = tuple(torch.tensor([prompt.tokens[span.start : span.stop]]) for span in self.spans)
        self.stopped: tuple[str, BaseException] | None = None
        """The component that returned no hidden states, and why."""
        self.lost: str | None = None
        """Why the states are lost, if the fault is not the side's."""

    def inputs(self, kind: str) -> CaseInputs:
        """Return the inputs of the component that makes up the next view."""
        steps = []
        for span, state in zip(self.spans, self.states, strict=True):
            inputs = {"input_ids" if kind == "embed" else "hidden_states": state}
            if kind == "block":
                inputs |= prompt_context(span)
            cache = "prompt" if len(self.spans) > 1 and kind == "block" else None
            steps.append(Step(span.name, inputs, cache=cache))
        return CaseInputs(tuple(steps))

    def advance(self, component: str, seen: Sequence[Observation], like: CarriedStates | None = None) -> None:
        """Take over what a component returned, or stop there.

        Args:
            like: the other side after the same component; states of other shapes than its states stop.
        """
        raised = next((one.raised for one in seen if one.raised is not None), None)
        states = tuple(one.taps["returned"] for one in seen if "returned" in one.taps)
        if raised is None and len(states) < len(self.spans):
            raised = ValueError("it returned no tensor")
        shapes = [state.shape for state in (like.states if like else states)]
        if raised is None and [state.shape for state in states] != shapes:
            raised = ValueError(f"it returned {list(states[0].shape)} where the reference returns {list(shapes[0])}")
        if raised is not None:
            self.stopped = component, raised
        else:
            self.states = states

    @property
    def joined(self) -> torch.Tensor:
        """The states of the whole prompt, `[1, seq, …]`."""
        return torch.cat(self.states, 1)


class PromptPass:
    """One pass of a prompt through the model: what every side carries in one model variant."""

    def __init__(self, prompt: Prompt, asked: Sequence[Cell], n_layers: int) -> None:
        """
        Args:
            asked: a prompt's cells in one model variant, which are to be judged.
            n_layers: the checkpoint's.
        """
        self.prompt = prompt
        cells = [*asked, *cells_on_the_way(asked, n_layers)]
        self.cells = sorted(cells, key=lambda cell: cell.candidate)
        """All cells that must be run, by candidate."""
        self._asked = {cell.id: cell for cell in asked}
        self._needs = {cell.candidate: cell for cell in asked if CASES[cell.case].own_hidden_states}
        self.lost: str | None = None
        """Why the pass ends, if weights could not be read."""
        self.carried: dict[tuple[str, str], torch.Tensor] = {}
        """What a candidate's component returned, by candidate and component, for cells of the whole model."""
        self._cells = {cell.case: cell for cell in cells}
        self._reference = {case: CarriedStates(prompt, CASES[case]) for case in self._cells}
        own = [cell for cell in cells if CASES[cell.case].own_hidden_states]
        self._candidates = {cell.candidate: CarriedStates(prompt, CASES[cell.case]) for cell in own}
        self._exact = torch.tensor([prompt.tokens])
        self._inputs: dict[str, dict[str, CaseInputs]] = {}
        """The reference's inputs in the entered view, by case and kind of component."""
        self._keeps_carried = any(cell.kind in WHOLE for cell in cells)

    def is_asked(self, cell: Cell) -> bool:
        return cell.id in self._asked

    def asked_for(self, cell: Cell) -> Cell:
        """Return a cell if it is asked for, or else the last cell of its candidate, which needs it."""
        return self._asked.get(cell.id) or self._needs[cell.candidate]

    def enter(self, view: WeightsView, reference: Reference) -> None:
        """Run the reference on its states in a view."""
        kind = kind_of(view)
        self._inputs = {}
        for name, carried in self._reference.items():
            if carried.stopped is not None:
                continue
            inputs = carried.inputs(kind)
            cell = placed(self._cells[name], view)
            seen = [side.observation for side in reference.run(cell, inputs)]
            carried.advance(cell.component, seen)
            if CASES[name].own_hidden_states:
                self._inputs[name] = {kind: inputs}
                self._exact = exact.FORWARDS[kind](self._exact, reference.parameters)
            elif carried.stopped is None:
                (step,), (observation,) = inputs.steps, seen
                by_kind = {kind: step.inputs} | (block_inputs(step.inputs, observation.taps) if kind == "block" else {})
                self._inputs[name] = {each: CaseInputs((Step(step.name, own),)) for each, own in by_kind.items()}

    def refusal(self, cell: Cell) -> tuple[Verdict, str] | None:
        """Return why the reference has no inputs for a cell; None if it has."""
        if self.lost is not None:
            return Verdict.ERROR, self.lost
        stopped = self._reference[cell.case].stopped
        if stopped is None or cell.kind in self._inputs.get(cell.case, {}):
            return None
        return Verdict.UNSUPPORTED, f"the reference refuses in {stopped[0]}: {stopped[1]}"

    def observe(self, cell: Cell, reference: Reference, bridge: nn.Module) -> ObservedCell:
        """Observe a cell in the entered view, and carry on what the candidate returned."""
        inputs = self._inputs[cell.case][cell.kind]
        if not CASES[cell.case].own_hidden_states:
            return observe_prompt_cell(cell, reference, bridge, inputs, inputs)
        carried = self._candidates[cell.candidate]
        if carried.lost is not None:
            return ObservedCell(cell, error=carried.lost)
        if carried.stopped is not None:
            return ObservedCell(cell, failure=CandidateFailedError(*carried.stopped))
        observed = observe_prompt_cell(cell, reference, bridge, inputs, carried.inputs(cell.kind))
        if observed.failure is not None or observed.error is not None:
            return observed
        return without_blame(cell, lambda: replace(observed, extra_findings=self._advance(observed, carried)))

    def stop(self, observed: ObservedCell) -> None:
        """Stop a candidate that failed before its forward, or whose cell was lost."""
        cell, failure = observed.cell, observed.failure
        if not CASES[cell.case].own_hidden_states:
            return
        carried = self._candidates[cell.candidate]
        carried.lost = carried.lost or observed.error
        if failure is not None and carried.stopped is None:
            carried.stopped = cell.component, failure.cause

    def _advance(self, observed: ObservedCell, carried: CarriedStates) -> tuple[Finding, ...]:
        """Take over what the candidate returned, and report how far it is from what the reference returned."""
        cell, reference = observed.cell, self._reference[observed.cell.case]
        if reference.stopped is not None:
            carried.stopped = reference.stopped
            return ()
        carried.advance(cell.component, [step.candidate.observation for step in observed.steps], like=reference)
        if carried.stopped is not None:
            return ()
        ours, theirs = carried.joined, reference.joined
        if self._keeps_carried:
            self.carried[cell.candidate, cell.component] = ours
        found = drift.carried(ours, theirs, self._exact)
        return (found, drift.top_1(ours, theirs)) if cell.kind == "unembed" else (found,)
