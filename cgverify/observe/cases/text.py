"""`text`: what a real prompt feeds each component, in every layer.

The prompt goes through the reference, layer after layer; what its own forward gives a component there is what both
sides are given: hidden states to a block and its layer norm, normalized ones to attention and MLP, activations to the
second linear of the MLP. Only this case sees what shows in the tensors that a trained model really has: outlier
channels that no Gaussian has, a 16-bit overflow that needs them, attention that rests on one key, an activation that
is wrong where it is dense, a table's row that a common token has.
"""

from __future__ import annotations

from cgverify.observe.cases.case import Case
from cgverify.observe.inputs import PromptSpan, leave_unchanged


def _whole(tokens: int) -> tuple[PromptSpan, ...]:
    return (PromptSpan("forward", 0, tokens),)


CASE = Case(bend=lambda _: leave_unchanged, parts=_whole)
