"""A stage of the candidate with what the oracle expects, and the test of a hypothesis about its tap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from cgverify.common.records import Cell
from cgverify.observe.stages import Stage, TensorsByName, WeightProduct, expected_tap
from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import assess, errors
from cgverify.verification.observed import ObservedStep

TensorEdit = Callable[[str, torch.Tensor], torch.Tensor]
"""Given a tensor's name and the tensor, what it is replaced by."""

SAMPLED = 16
"""A hypothesis about a product is tested on this many columns before it is computed whole: most fail there."""


@dataclass(frozen=True)
class CandidateStage:
    """One stage of the candidate in one step of a cell. What the oracle expects is computed once, if it is needed."""

    cell: Cell
    step: ObservedStep
    stage: Stage
    parameters: Parameters
    """With the sin/cos table in the dtype that the forward had."""

    @cached_property
    def expected(self) -> Expected | None:
        """The value and bound of the whole tap; None if they cannot be computed."""
        return expected_tap(self.stage, self.step.candidate.tensors, self.parameters, self.step.misfit)

    @cached_property
    def mismatch(self) -> Mismatch | None:
        """The tap and what it should be; None if no element breaks its bound or the two have different forms."""
        tensors = self.step.candidate.tensors
        tap = tensors.get(self.stage.tap)
        if tap is None or tap.dtype not in UNIT_ROUNDOFF or not tap.numel():
            return None
        expected = self.expected
        if expected is None or expected.value.shape != tap.shape:
            return None
        mismatch = Mismatch(self.stage, tensors, self.parameters, expected)
        return mismatch if bool(mismatch.broken.any()) else None


@dataclass(frozen=True)
class Mismatch:
    """A tap that breaks its bound, with what it is computed from."""

    stage: Stage
    tensors: TensorsByName
    """The candidate's inputs and taps."""
    parameters: Parameters
    expected: Expected
    """In the tap's shape."""

    @property
    def tap(self) -> torch.Tensor:
        return self.tensors[self.stage.tap]

    @cached_property
    def error(self) -> torch.Tensor:
        """|tap − o| in float64, in the tap's shape; infinite if only one of the two is finite."""
        return errors(self.tap, self.expected).reshape(self.tap.shape)

    @cached_property
    def broken(self) -> torch.Tensor:
        """Which elements break their bound, boolean, in the tap's shape."""
        return (self.error > self.expected.bound) | self.error.isinf()  # the bound of an infinity is infinite

    @cached_property
    def inputs(self) -> set[str]:
        """The names of the tensors that the stage starts from, without the mask."""
        oracle = self.stage.oracle
        if isinstance(oracle, WeightProduct):
            names = {oracle.input}
        else:
            names = set(oracle.expect(self.tensors, self.parameters)[1])
        return {name for name in names if name in self.tensors} - {"given.attention_mask"}

    def agrees(self, hypothesis: Expected) -> bool:
        """Whether the tap is within the bound of another computation."""
        return self.tap.numel() == hypothesis.value.numel() and assess(self.tap, hypothesis)[0].value <= 1

    def agrees_with(
        self,
        edit_input: TensorEdit,
        edit_weight: TensorEdit,
        edit_result: Callable[[Expected], Expected] = lambda expected: expected,
    ) -> bool:
        """Whether the tap is what the stage computes from edited inputs and weights, after an edit of the result."""
        tensors = {name: edit_input(name, seen) if name in self.inputs else seen for name, seen in self.tensors.items()}
        edited = replace(self, tensors=tensors, parameters=EditedParameters(self.parameters, edit_weight))
        for part in (edited.sampled(), edited) if isinstance(self.stage.oracle, WeightProduct) else (edited,):
            hypothesis = expected_tap(part.stage, part.tensors, part.parameters)
            if hypothesis is None or not part.agrees(edit_result(hypothesis)):
                return False
        return True

    def sampled(self) -> Mismatch:
        """Return a few columns of a product, with the worst one among them; any other stage as it is."""
        if not isinstance(self.stage.oracle, WeightProduct):
            return self
        weight = self.stage.oracle.weight
        width = len(self.parameters.tensor(weight))
        tap, value, bound, error = (
            part.reshape(-1, width) for part in (self.tap, self.expected.value, self.expected.bound, self.error)
        )
        worst = (error / bound).nan_to_num(nan=0.0, posinf=torch.inf).amax(0).argmax()
        columns = torch.cat((torch.linspace(0, width - 1, SAMPLED).long(), worst.reshape(1).cpu())).unique()

        def select(name: str, stored: torch.Tensor) -> torch.Tensor:
            return stored[columns] if name.startswith(weight) else stored

        return replace(
            self,
            tensors={**self.tensors, self.stage.tap: tap[:, columns]},
            parameters=EditedParameters(self.parameters, select),
            expected=Expected(value[:, columns], bound[:, columns], self.expected.dtype),
        )


def unchanged(_: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class EditedParameters(Parameters):
    """Parameters whose tensors are edited whenever they are read."""

    def __init__(self, stored: Parameters, edit: TensorEdit) -> None:
        """
        Args:
            edit: given a tensor's name and the tensor; a bias has its weight's name with `.bias` appended.
        """
        vars(self).update(vars(stored))
        self._stored, self._edit = stored, edit

    def with_cast_table(self) -> Parameters:
        return EditedParameters(self._stored.with_cast_table(), self._edit)

    def tensor(self, name: str) -> torch.Tensor:
        return self._edit(name, self._stored.tensor(name))

    def bias(self, name: str) -> torch.Tensor | None:
        bias = self._stored.bias(name)
        return None if bias is None else self._edit(f"{name}.bias", bias)
