"""`masked_row`: a query amid the sequence sees no key at all, and the first half of one batch row is padding.

A query that sees nothing attends to all keys alike (in float16 not quite: its lowest value keeps a part of q·k). Under
`stress` the only such queries are padding themselves, and only from four tokens on. This case alone sees a softmax that
is protected against such rows for real tokens: one that gives NaN or zeros there, one that lets a token see itself
whatever the mask says, or one that rebuilds the mask from its last row.
"""

from __future__ import annotations

from cgverify.observe.cases.case import Case
from cgverify.observe.inputs import LOWEST, Inputs, InputSpec


def _hide(inputs: Inputs, _: InputSpec) -> Inputs:
    mask = inputs["attention_mask"].clone()
    seq = mask.shape[-1]
    mask[-1, :, :, : seq // 2] = LOWEST
    mask[:, :, (2 * seq) // 3] = LOWEST
    return {**inputs, "attention_mask": mask}


CASE = Case(bend=lambda _: _hide)
