"""What a case is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import CodeGenConfig

from cgverify.observe.components import Component
from cgverify.observe.conditions import PLAIN, Conditions
from cgverify.observe.inputs import (
    CaseInputs,
    Inputs,
    InputSpec,
    InputTransform,
    PromptSpan,
    RandomInputs,
    Step,
    draw,
)
from cgverify.observe.stages import Stage, TensorsByName

Steps = Callable[[Component, Inputs, InputSpec], tuple[Step, ...]]
StagesOf = Callable[[Component, Step], tuple[Stage, ...]]


def one_forward(name: str = "forward", conditions: Callable[[InputSpec], Conditions] = lambda _: PLAIN) -> Steps:
    """A single step under conditions that are made from the cell's numbers."""
    return lambda _, inputs, spec: (Step(name, inputs, conditions(spec)),)


def each_stage(change: Callable[[Stage, Component], Stage]) -> StagesOf:
    """The component's stages without a cache, each changed."""
    return lambda component, _: tuple(change(stage, component) for stage in component.stages(False))


plain_forward = one_forward()
plain_stages = each_stage(lambda stage, _: stage)


def no_tensors(_: TensorsByName) -> dict[str, torch.Tensor]:
    return {}


@dataclass(frozen=True)
class Case:
    """A recipe: inputs, the forwards that are made of them with their conditions, and the stages of each forward."""

    transform: InputTransform | None = None
    """What is done to random inputs. None is the component's own stress."""
    steps: Steps = plain_forward
    stages: StagesOf = plain_stages
    shared: Callable[[TensorsByName], dict[str, torch.Tensor]] = no_tensors
    """What both sides' stages read from the reference's taps, such as which elements dropout kept."""
    extra_tokens: int = 0
    """How many tokens are drawn in addition to `seq_len`."""
    spans: Callable[[int], tuple[PromptSpan, ...]] | None = None
    """How a prompt with a number of tokens is cut into forwards. None if the inputs are random."""
    own_hidden_states: bool = False
    """Whether each side gets the hidden states that it computed from the prompt. Otherwise both get the reference's."""
    accepts_equal_bits: bool = False
    """Whether a tap with the same bits on both sides passes without its oracle, which can then only agree or doubt
    both. Cases with many forwards save time so."""
    whole_weights: bool = False
    """Whether every weight that the candidate keeps is compared as well."""

    def build_inputs(
        self, component: Component, spec: InputSpec, config: CodeGenConfig, random_inputs: RandomInputs
    ) -> CaseInputs:
        """Return the forwards of this case on one component."""
        transform = component.stress(config) if self.transform is None else self.transform
        return CaseInputs(self.steps(component, draw(random_inputs, spec, transform, self.extra_tokens), spec))
