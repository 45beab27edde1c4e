"""`masked_row`: a query in the middle of the sequence sees no key, and the first half of one batch row is padding.

A query that sees nothing attends to all keys equally (in float16 not quite: its lowest value keeps a part of q·k). In
`stress` the only such queries are padding themselves, and only from four tokens on. Only this case sees a softmax that
guards against such rows for real tokens: it gives NaN or zeros there, lets a token see itself whatever the mask says,
or rebuilds the mask from its last row.
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


CASE = Case(transform=_hide)
