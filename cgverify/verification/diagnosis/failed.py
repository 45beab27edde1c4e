"""A tap that broke its bound: what its known causes are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from cgverify.observe.stages import Stage, TensorsByName, WeightProduct, expected_tap
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import assess, errors

TapEdit = Callable[[str, torch.Tensor], torch.Tensor]
"""What becomes of a named tensor."""

SAMPLED = 16
"""Columns of a product on which a hypothesis must hold before it is computed whole: most of them fall here."""


@dataclass(frozen=True)
class Failed:
    """A stage of the candidate with its tap, and what the tap was to be."""

    stage: Stage
    view: TensorsByName
    """The candidate's taps and givens."""
    parameters: Parameters
    """With the table as the forward had it."""
    answer: Expected
    """In the tap's shape."""

    @property
    def tap(self) -> torch.Tensor:
        return self.view[self.stage.tap]

    @cached_property
    def error(self) -> torch.Tensor:
        """|tap − o| in float64 and in the tap's shape, infinite where only one of the two is finite."""
        return errors(self.tap, self.answer).reshape(self.tap.shape)

    @cached_property
    def broken(self) -> torch.Tensor:
        """Which elements break their bound."""
        return self.error > self.answer.bound

    def agrees(self, would_be: Expected) -> bool:
        """Whether the tap holds the bound of another computation."""
        return self.tap.numel() == would_be.value.numel() and assess(self.tap, would_be)[0].value <= 1

    def agrees_with(
        self,
        change_input: TapEdit,
        change_weight: TapEdit,
        change_result: Callable[[Expected], Expected] = lambda one: one,
    ) -> bool:
        """Whether the tap is what the stage makes of other inputs and weights; a product's sample is asked first."""
        view = {name: change_input(name, seen) if name in self.inputs else seen for name, seen in self.view.items()}
        changed = replace(self, view=view, parameters=Changed(self.parameters, change_weight))
        for part in (changed.sampled(), changed) if isinstance(self.stage.oracle, WeightProduct) else (changed,):
            would_be = expected_tap(part.stage, part.view, part.parameters)
            if would_be is None or not part.agrees(change_result(would_be)):
                return False
        return True

    @cached_property
    def inputs(self) -> set[str]:
        """The names of what the stage reads, but for the mask."""
        oracle = self.stage.oracle
        names = (
            {oracle.input} if isinstance(oracle, WeightProduct) else set(oracle.expect(self.view, self.parameters)[1])
        )
        return {name for name in names if name in self.view} - {"given.attention_mask"}

    def sampled(self) -> Failed:
        """The same for a few columns of a product, the worst among them; any other stage as it is."""
        if not isinstance(self.stage.oracle, WeightProduct):
            return self
        weight = self.stage.oracle.weight
        width = len(self.parameters.tensor(weight))
        tap, value, bound, error = (
            part.reshape(-1, width) for part in (self.tap, self.answer.value, self.answer.bound, self.error)
        )
        worst = (error / bound).nan_to_num(nan=0.0, posinf=torch.inf).amax(0).argmax()
        columns = torch.cat((torch.linspace(0, width - 1, SAMPLED).long(), worst.reshape(1).cpu())).unique()
        return replace(
            self,
            view={**self.view, self.stage.tap: tap[:, columns]},
            parameters=Changed(
                self.parameters, lambda name, stored: stored[columns] if name.startswith(weight) else stored
            ),
            answer=Expected(value[:, columns], bound[:, columns], self.answer.dtype),
        )


def failed(stage: Stage, view: TensorsByName, parameters: Parameters) -> Failed | None:
    """What there is to say more about; None where a tap never fired, has another form, or cannot be computed."""
    tap = view.get(stage.tap)
    answer = expected_tap(stage, view, parameters) if tap is not None and tap.is_floating_point() else None
    if answer is None or tap is None or answer.value.shape != tap.shape or not tap.numel():
        return None
    return Failed(stage, view, parameters, answer)


def unchanged(_: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class Changed(Parameters):
    """Parameters whose tensors are changed on the way out."""

    def __init__(self, stored: Parameters, change: TapEdit) -> None:
        """
        Args:
            change: what becomes of a tensor, given its name; that of a bias is its weight's with `.bias` behind it.
        """
        self._stored, self._change = stored, change
        self.shortcuts = stored.shortcuts

    @property
    def eps(self) -> float:
        return self._stored.eps

    @property
    def n_heads(self) -> int:
        return self._stored.n_heads

    def with_cast_table(self) -> Parameters:
        return Changed(self._stored.with_cast_table(), self._change)

    def tensor(self, name: str) -> torch.Tensor:
        return self._change(name, self._stored.tensor(name))

    def bias(self, name: str) -> torch.Tensor | None:
        bias = self._stored.bias(name)
        return None if bias is None else self._change(f"{name}.bias", bias)
