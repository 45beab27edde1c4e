"""A prompt's way through the model in one setting, view after view of the window.

What is carried is hidden states `[1, seq, d_model]`: the reference's for each case, for `model` those of each candidate
and those without rounding as well. Everything else is dropped with the view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch

from cgverify.checkpoint.window import WeightsView
from cgverify.common.records import Cell, Finding, Prompt, Verdict
from cgverify.observe.cases import CASES
from cgverify.observe.cases.case import Case
from cgverify.observe.components import COMPONENTS
from cgverify.observe.inputs import CaseInputs, Step, prompt_context
from cgverify.observe.taps import Observation
from cgverify.oracle import exact
from cgverify.plan.cells import WHOLE
from cgverify.verification import drift
from cgverify.verification.cell import CandidateFailedError, PromptInputs, Reference
from cgverify.verification.check import ObservedCell


def views(n_layers: int) -> tuple[WeightsView, ...]:
    """All views, in the order of the computation."""
    return ("embed", *range(n_layers), "ln_final", "unembed")


def kind_of(view: WeightsView) -> str:
    """The component that is the whole of a view."""
    return view if isinstance(view, str) else "block"


def name_of(view: WeightsView) -> str:
    """That component's name in the bridge."""
    return view if isinstance(view, str) else f"blocks.{view}"


def on_the_way(cells: Sequence[Cell], n_layers: int) -> Iterator[Cell]:
    """The cells of `model` that must be run, and not judged, to come to the given ones.

    For each candidate and setting: those before its last, as far as they are not given themselves.
    """
    order = [*views(n_layers), *WHOLE]
    own = [cell for cell in cells if cell.prompt and CASES[cell.case].own_hidden_states]
    for _, group in groupby(sorted(own, key=_way), key=_way):
        given = list(group)
        last = max(order.index(view_of(cell)) for cell in given)
        here = {view_of(cell) for cell in given}
        yield from (placed(given[0], view) for view in order[:last] if view not in here)


def _way(cell: Cell) -> tuple[str, ...]:
    return cell.candidate, cell.dtype, cell.device, str(cell.rotary_dim)


def view_of(cell: Cell) -> WeightsView:
    return cell.kind if cell.layer is None else cell.layer


def placed(cell: Cell, view: WeightsView) -> Cell:
    """The same cell in another view."""
    layer = view if isinstance(view, int) else None
    return Cell.model_validate(cell.model_dump() | {"layer": layer, "kind": kind_of(view)})


class Passage:
    """One side of one case: what the next view is given, for each part of the prompt."""

    def __init__(self, prompt: Prompt, case: Case) -> None:
        assert case.parts is not None, "a case of a prompt"
        self.parts = case.parts(len(prompt.tokens))
        self.states = tuple(torch.tensor([prompt.tokens[part.start : part.stop]]) for part in self.parts)
        self.stopped: tuple[str, BaseException] | None = None
        """The component that no hidden states came out of, and why."""

    def probe(self, kind: str) -> CaseInputs:
        """What the component that is the whole of a view is given."""
        steps = []
        for part, state in zip(self.parts, self.states, strict=True):
            inputs = {"input_ids" if kind == "embed" else "hidden_states": state}
            if kind == "block":
                inputs |= prompt_context(part)
            cache = "prompt" if len(self.parts) > 1 and kind == "block" else None
            steps.append(Step(part.name, inputs, cache=cache))
        return CaseInputs(tuple(steps))

    def advance(self, component: str, seen: Sequence[Observation], like: Passage | None = None) -> None:
        """Take what a component returned.

        Args:
            like: another side whose states have been taken; what has not their shapes cannot go on.
        """
        raised = next((one.raised for one in seen if one.raised is not None), None)
        states = tuple(one.taps["returned"] for one in seen if "returned" in one.taps)
        if raised is None and len(states) < len(self.parts):
            raised = ValueError("it returned no tensor")
        shapes = [state.shape for state in (like.states if like else states)]
        if raised is None and [state.shape for state in states] != shapes:
            raised = ValueError(f"it returned {list(states[0].shape)} where the reference returns {list(shapes[0])}")
        if raised is not None:
            self.stopped = component, raised
        else:
            self.states = states

    @property
    def whole(self) -> torch.Tensor:
        """The states of all parts, `[1, seq, …]`."""
        return torch.cat(self.states, 1)


class Journey:
    """Every side's passage in one setting, and the hidden states without rounding."""

    def __init__(self, prompt: Prompt, cells: Sequence[Cell]) -> None:
        """
        Args:
            cells: those of a prompt in this setting, with those on the way to them.
        """
        self.prompt = prompt
        self._cells = {cell.case: cell for cell in cells}
        self._reference = {case: Passage(prompt, CASES[case]) for case in self._cells}
        self._candidates = {
            cell.candidate: Passage(prompt, CASES[cell.case]) for cell in cells if CASES[cell.case].own_hidden_states
        }
        self._exact = torch.tensor([prompt.tokens])
        self._given: dict[str, dict[str, CaseInputs]] = {}
        self.carried: dict[tuple[str, str], torch.Tensor] = {}
        """By candidate and component: what was carried out of it."""
        self._keeps = any(cell.kind in WHOLE for cell in cells)
        self.lost: str | None = None
        """Why the way ends, if weights could not be read."""

    def enter(self, view: WeightsView, reference: Reference) -> None:
        """Let the reference's states pass a view."""
        kind = kind_of(view)
        self._given = {}
        for name, passage in self._reference.items():
            if passage.stopped is not None:
                continue
            case = CASES[name]
            given = passage.probe(kind)
            here = placed(self._cells[name], view)
            seen = [step.side.observation for step in reference.run(here, given)]
            passage.advance(here.component, seen)
            if case.own_hidden_states:
                self._given[name] = {kind: given}
                self._exact = exact.FORWARDS[kind](self._exact, reference.parameters)
            elif passage.stopped is None:
                self._given[name] = _fed(kind, given, seen)

    def refusal(self, cell: Cell) -> tuple[Verdict, str] | None:
        """Why the reference has no states for a cell, if it has none."""
        if self.lost is not None:
            return Verdict.ERROR, self.lost
        stopped = self._reference[cell.case].stopped
        if stopped is None or cell.kind in self._given.get(cell.case, {}):
            return None
        return Verdict.UNSUPPORTED, f"the reference refuses in {stopped[0]}: {stopped[1]}"

    def given(self, cell: Cell) -> PromptInputs:
        """What both sides of a cell are given in the view that was entered.

        Raises:
            CandidateFailedError: the candidate did not get this far.
        """
        theirs = self._given[cell.case][cell.kind]
        if not CASES[cell.case].own_hidden_states:
            return PromptInputs(theirs, theirs)
        passage = self._candidates[cell.candidate]
        if passage.stopped is not None:
            raise CandidateFailedError(*passage.stopped)
        return PromptInputs(theirs, passage.probe(cell.kind))

    def stop(self, cell: Cell, error: BaseException) -> None:
        """A candidate failed before its forward, so nothing of its own goes on."""
        passage = self._candidates.get(cell.candidate) if CASES[cell.case].own_hidden_states else None
        if passage is not None and passage.stopped is None:
            passage.stopped = cell.component, error

    def leave(self, observed: ObservedCell) -> tuple[Finding, ...]:
        """Let a candidate's states pass the view, and say how far they are from the reference's."""
        cell = observed.cell
        if not CASES[cell.case].own_hidden_states:
            return ()
        passage, reference = self._candidates[cell.candidate], self._reference[cell.case]
        if reference.stopped is not None:
            passage.stopped = reference.stopped
            return ()
        passage.advance(cell.component, [step.candidate.observation for step in observed.steps], like=reference)
        if passage.stopped is not None:
            return ()
        ours, theirs = passage.whole, reference.whole
        if self._keeps:
            self.carried[cell.candidate, cell.component] = ours
        found = drift.carried(ours, theirs, self._exact)
        return (found, drift.top_1(ours, theirs)) if cell.kind == "unembed" else (found,)


def _fed(kind: str, given: CaseInputs, seen: Sequence[Observation]) -> dict[str, CaseInputs]:
    """By component in view: what the reference's own forward gave it."""
    (step,), (observation,) = given.steps, seen
    fed = {kind: step.inputs}
    if kind == "block":
        context = {name: step.inputs[name] for name in ("position_ids", "attention_mask")}
        taps = observation.taps
        normed = {"hidden_states": taps["attn.hook_in"]}
        fed |= {
            "ln1": {"hidden_states": taps["ln1.hook_in"]},
            "attn": normed | context,
            **{f"attn.{w}": normed for w in "qkv"},
            "attn.o": {"hidden_states": taps["attn.hook_z"].flatten(2)},
            "mlp": {"hidden_states": taps["mlp.hook_in"]},
            "mlp.in": {"hidden_states": taps["mlp.in.hook_in"]},
            "mlp.out": {"hidden_states": taps["mlp.out.hook_in"]},
        }
    assert set(fed) <= set(COMPONENTS)
    return {name: CaseInputs((Step(step.name, inputs),)) for name, inputs in fed.items()}
