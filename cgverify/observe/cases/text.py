"""`text`: the inputs that each component of each layer gets from a real prompt.

The prompt goes through the reference, layer after layer. Both sides get what the reference's own forward gives a
component: hidden states to a block and its layer norm, normalized ones to attention and MLP, activations to the second
linear of the MLP. Only this case sees what shows in the tensors of a trained model: outlier channels that no Gaussian
has, a 16-bit overflow that needs them, attention that rests on one key, an activation that is wrong where it is dense,
a row of the embedding that a common token has.
"""

from __future__ import annotations

from cgverify.observe.cases.case import Case
from cgverify.observe.inputs import PromptSpan, leave_unchanged

CASE = Case(transform=leave_unchanged, spans=lambda tokens: (PromptSpan("forward", 0, tokens),))
