"""`decode`: a prefill, then single tokens and a chunk, through one `DynamicCache` whose contents are compared too.

Positions have gaps, and the mask is soft under the causal one with padding on the left, as in `stress`. The second
token and the chunk have one row of positions for the whole batch, as Hugging Face's model calls its blocks. Only this
case sees keys or values that are cast, placed or rotated wrongly on their way into the cache, a uniform offset of all
positions, and a mask or positions that are ignored once there is a cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.inputs import Inputs, InputSpec, Step, slice_tokens, stress_context
from cgverify.plan.cases import DECODE_STEPS, DECODED_TOKENS

SHARED_POSITIONS = ("token 2", "chunk")
"""Steps with one row of positions for the whole batch."""


def pieces(inputs: Inputs, spec: InputSpec) -> Iterator[tuple[str, Inputs]]:
    """Cut the sequence into a prefill, single tokens and a chunk. Each sees all keys up to its own.

    Positions are `[batch, length]`, or `[1, length]` in `SHARED_POSITIONS`.
    """
    start = 0
    for name, length in (("prefill", spec.seq_len), *DECODE_STEPS):
        rows = slice(1) if name in SHARED_POSITIONS else slice(None)
        yield name, slice_tokens(inputs, slice(start, start + length), rows)
        start += length


def _steps(_: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    return tuple(Step(name, piece, cache="all") for name, piece in pieces(inputs, spec))


CASE = Case(
    transform=stress_context,
    steps=_steps,
    stages=lambda component, _: component.stages(True),
    extra_tokens=DECODED_TOKENS,
)
