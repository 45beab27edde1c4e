"""`state`: calls that follow each other on one instance, none of which may depend on the ones before.

| step | inputs | |
|---|---|---|
| `A` | those of `stress` | |
| `B` | others of the same shape, with A's first token | judged by its stages, as all are |
| `A in B's memory` | the tensors of `B`, edited in place | has the bits of `A`, whose tensors are unchanged |
| `A at last` | | has the bits of `A` after each of the events in `cgverify/observe/events.py` |
| `P`, `Q`, `P, a token`, `Q, a token` | A and B through two caches, in turn | attention and block |

Only this case sees a mask, a table, weights or an output that are kept from an earlier forward, by shape, by identity
or by a part of the contents; memory that is given out again; what an exception, a change of mode or dtype, an edit or a
patch leaves behind; a deep copy that is not one. Attention and MLP of a block go through some events by themselves, to
which a block does not lead them: `OF_PARTS` there. Changes outside of a call are looked for in every case.
"""

from __future__ import annotations

import torch

from cgverify.observe import events
from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.inputs import LOWEST, Inputs, InputSpec, Step, slice_tokens


def _steps(_: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    others = _others(inputs)
    steps = [
        Step("A", inputs),
        Step("B", others),
        Step("A in B's memory", inputs, repeats="A", in_last_memory=True),
        Step("A at last", inputs, repeats="A", events=tuple(events.EVENTS)),
    ]
    if "attention_mask" in inputs and spec.seq_len > 1:
        last = spec.seq_len - 1
        for name, span in (("", slice(0, last)), (", a token", slice(last, None))):
            steps += [
                Step(f"{cache}{name}", slice_tokens(given, span), cache=cache)
                for cache, given in (("P", inputs), ("Q", others))
            ]
    return tuple(steps)


def _others(inputs: Inputs) -> Inputs:
    """Return other inputs of the same shapes, with the same first token unless it is the only one."""
    others = {}
    for name, given in inputs.items():
        if name == "attention_mask":
            changed = torch.where(given <= LOWEST, given, -given).flip(0)
        elif given.is_floating_point():
            changed = -given
        else:
            changed = (given - 1).abs()
        if name != "attention_mask" and given.shape[1] > 1:
            changed[:, 0] = given[:, 0]
        others[name] = changed
    return others


CASE = Case(
    steps=_steps,
    stages=lambda component, step: component.stages(step.cache is not None),
    accepts_equal_bits=True,
)
