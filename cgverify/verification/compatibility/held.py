"""What a bridge's block is held to: the reference as it is, or what compatibility mode makes of it.

In that mode two things are asked. Do the processed weights do what the reference's do, weight by weight? And does the
bridge, stage by stage, compute with its processed weights what Hugging Face's own modules compute with the same? Its
masks hide with −∞ where Hugging Face's have the lowest finite value, so both sides are given masks of −∞.

What a query sees that may see nothing, gradients, and hooks that a flag turns on, whose inputs a block then brings from
before its layer norm, have no counterpart there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cgverify.common.records import Finding
from cgverify.observe.inputs import CaseInputs
from cgverify.observe.run import reference_parameters
from cgverify.verification.compatibility.stand_in import stand_in
from cgverify.verification.compatibility.weights import Folding

COMPATIBLE_CASES = ("default", "stress", "decode", "train", "cast_table", "autocast")
"""Those in which a bridge in compatibility mode can be verified."""


@dataclass(frozen=True)
class Held:
    model: nn.Module
    """A `CodeGenForCausalLM` of one block."""
    bend: Callable[[CaseInputs], CaseInputs]
    """What is done to the inputs of both sides."""
    beside: Callable[[str], tuple[Finding, ...]]
    """By kind of component: what is found beside its stages."""


def as_it_is(reference: nn.Module) -> Held:
    return Held(reference, lambda built: built, lambda _: ())


def as_processed(reference: nn.Module, bridge: nn.Module) -> Held:
    """
    Args:
        reference: a `CodeGenForCausalLM` of one block.
        bridge: a bridge of that block, in compatibility mode.
    """
    model = stand_in(reference, bridge)
    folding = Folding(reference_parameters(reference), reference_parameters(model))
    return Held(model, CaseInputs.with_infinite_masks, folding.findings)
