"""What a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cgverify.observe.components import Component
from cgverify.observe.inputs import CaseInputs, Inputs, InputSpec, PromptSpan, RandomInputs, Step, Stress, draw
from cgverify.observe.stages import Stage, TensorsByName


def as_listed(component: Component, _: Step) -> tuple[Stage, ...]:
    """The component's stages, as they are without a cache."""
    return component.stages(False)


def nothing(_: TensorsByName) -> dict[str, torch.Tensor]:
    return {}


def one_forward(_: Component, inputs: Inputs, __: InputSpec) -> tuple[Step, ...]:
    return (Step("forward", inputs),)


@dataclass(frozen=True)
class Case:
    """A recipe: inputs, bent; the forwards that are made of them, each under its conditions; the stages of each."""

    bend: Callable[[Stress], Stress]
    """Given the component's own stress, what is done to the inputs that were drawn."""
    steps: Callable[[Component, Inputs, InputSpec], tuple[Step, ...]] = one_forward
    stages: Callable[[Component, Step], tuple[Stage, ...]] = as_listed
    shared: Callable[[TensorsByName], dict[str, torch.Tensor]] = nothing
    """What both sides' stages take from the reference's taps in a step, such as which elements dropout kept."""
    extra_tokens: int = 0
    """How many tokens are drawn beyond `seq_len`."""
    parts: Callable[[int], tuple[PromptSpan, ...]] | None = None
    """How a prompt of so many tokens is cut into forwards; None where inputs are random and not a prompt's."""
    own_hidden_states: bool = False
    """Whether each side is given the hidden states that it made of the prompt itself, and not both the reference's."""

    def build_inputs(
        self, component: Component, recipe: InputSpec, random_inputs: RandomInputs, stress: Stress
    ) -> CaseInputs:
        """The forwards of this case on one component."""
        inputs = draw(random_inputs, recipe, self.bend(stress), self.extra_tokens)
        return CaseInputs(self.steps(component, inputs, recipe))
