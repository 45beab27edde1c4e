"""Records of what was observed of a cell: the tensors of both sides, and how each stage compares with its oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from cgverify.common.printable import described
from cgverify.common.records import Cell, Finding
from cgverify.observe.conditions import Conditions, Substitute
from cgverify.observe.stages import Stage, UnfitTapError, wrong_form
from cgverify.observe.taps import Observation
from cgverify.verification.metrics import TrustedBits, Worst

RAISED_TAP = "raised"
"""The tap of a finding that says that the candidate raised."""


@dataclass
class StageCheck:
    """One stage of one side compared with its oracle, collected from blocks of columns."""

    dtype: torch.dtype
    """The dtype that the tap must have."""
    bits: TrustedBits
    r: float = 0.0
    """The greatest error in units of its bound."""
    index: int = 0
    """The flat index of the element with that error."""
    error: float = 0.0
    """The greatest absolute error."""

    @property
    def visible_error(self) -> float:
        """The greatest absolute error of the elements that the attention mask does not hide.

        The lowest value of a mask has errors of 1e30, which say nothing. Infinite if any error is infinite, also for a
        wrong shape.
        """
        return self.error if math.isinf(self.error) else float(self.bits.errors.max())

    def add(self, worst: Worst, index: int, error: float) -> None:
        """Add a block of columns: its worst ratio, where that is in the whole tap, and its greatest error."""
        if worst.value > self.r:
            self.r, self.index = worst.value, index
        self.error = max(self.error, error)


@dataclass
class ObservedSide:
    """One forward of one side."""

    observation: Observation
    tensors: Mapping[str, torch.Tensor]
    """Its inputs (`given.…`) and taps by name."""
    shared: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that the candidate's stages take from the reference, such as dropout masks."""
    checks: dict[int, StageCheck] = field(default_factory=dict)
    """By the stage's index in `ObservedStep.stages`."""
    unfit: dict[int, UnfitTapError] = field(default_factory=dict)
    """The tap because of which a stage cannot be checked, by the stage's index."""
    forms: dict[str, str] = field(default_factory=dict)
    """By tap: what is wrong with its shape or dtype, by its own oracle; empty if nothing is."""
    elements: dict[str, int] = field(default_factory=dict)
    """By tap of a product: the number of elements that is right."""
    read: dict[int, list[str]] = field(default_factory=dict)
    """The names of the tensors that the oracle of a stage started from, by the stage's index."""
    accepted: set[int] = field(default_factory=set)
    """The stages, by index, that no oracle checks because both sides have the same bits in their taps."""


@dataclass(frozen=True)
class ObservedStep:
    """One forward of both sides, with the stages to check."""

    name: str
    stages: tuple[Stage, ...]
    reference: ObservedSide
    candidate: ObservedSide
    conditions: Conditions
    accepts_equal_bits: bool = False
    """Whether stages whose taps have the same bits on both sides are not checked."""

    @cached_property
    def stage_of(self) -> dict[tuple[str, str], Stage]:
        """The stages by name and tap, as findings name them."""
        return {(stage.name, stage.tap): stage for stage in self.stages}

    def misfit(self, name: str, tensor: torch.Tensor) -> str:
        """Say why no stage of the candidate can start from a tensor of it; empty if one can.

        Its own oracle decides, or else the reference's tensor, unless that one is no result of its stage.
        """
        if name in self.candidate.forms:
            return self.candidate.forms[name]
        like = self.reference.tensors.get(name, self.reference.observation.taps.get(name))
        if like is not None and like.numel() == self.candidate.elements.get(name, like.numel()):
            return wrong_form(tensor, like)
        return "" if name.startswith("given.") else wrong_form(tensor, torch.empty(tensor.shape, device="meta"))

    def misfit_of_reference(self, name: str, tensor: torch.Tensor) -> str:
        """Say why no stage of the reference can start from a tensor of it; empty if one can. Its oracles decide."""
        elements = self.reference.elements.get(name, tensor.numel())
        if tensor.numel() != elements:
            return f"has shape {list(tensor.shape)} where {elements} elements are right"
        return self.reference.forms.get(name, "")

    def patches_read(self, stage: Stage) -> list[str]:
        """Return the taps that hooks replaced and that a stage of the candidate starts from."""
        read = self.candidate.read.get(self.stages.index(stage), ())
        return [patch.tap for patch in self.conditions.patches if patch.tap in read]


Rerun = Callable[[ObservedStep, Substitute], ObservedStep | None]
"""Run the candidate again with another tensor at one tap of one step; None if it raises before that step."""


class CandidateFailedError(Exception):
    """The candidate failed before its forward: in its boot, for lack of a component, or in `get_random_inputs`."""

    def __init__(self, where: str, cause: BaseException, message: str = "") -> None:
        super().__init__(message or f"the candidate raised in {where}: {described(cause)}")
        self.where, self.cause = where, cause


@dataclass(frozen=True)
class ObservedCell:
    """A cell that has been run and is not judged yet."""

    cell: Cell
    steps: Sequence[ObservedStep] = ()
    failure: CandidateFailedError | None = None
    """Why there is nothing to compare, if the candidate failed before its forward."""
    started: float = 0.0
    """When the cell was begun, by `time.perf_counter`."""
    candidate_seconds: float = 0.0
    reference_seconds: float = 0.0
    """0 if the reference has run for another candidate's cell already."""
    rerun: Rerun | None = None
    """None if the candidate cannot be run again."""
    extra_findings: tuple[Finding, ...] = ()
    """Findings about no stage, such as drift or processed weights."""
    error: str | None = None
    """Why there is nothing to compare, if the fault is neither the candidate's nor the reference's."""
