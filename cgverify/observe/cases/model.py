"""`model`: a prompt goes through the whole model, each side with the hidden states that it made itself.

Embedding, every block, the last layer norm and the unembedding follow each other through the window, so this needs the
memory of one block. All but the last tokens of the prompt go first; those follow one by one through each layer's cache.
They are the prompt's own: tokens that a model generates itself would need every layer anew for each.
Each component is judged by its stages, on the side's own input, and that alone can fail: how far the two sides have
drifted apart, and each from the model without rounding (`cgverify/oracle/exact.py`), is reported beside it, and so is
the top-1 prediction at every position. Two logits that tie within rounding may change places without any fault.

Where the whole model fits into memory, component `model` boots it, as a user does, and lets it generate
(`cgverify/verification/whole_model.py`). Only that sees what no single block shows: layers in another order, one layer
with another's
weights, a last layer norm that is left out or applied twice, an unembedding tied to the embedding, a cache that mixes
layers up, anything that one block gets from another beside the residual stream.
"""

from __future__ import annotations

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.inputs import PromptSpan, Step, leave_unchanged
from cgverify.observe.stages import Stage
from cgverify.plan.cells import FORCED_TOKENS


def parts(tokens: int) -> tuple[PromptSpan, ...]:
    """All but the last tokens at once, then those one by one."""
    prefill = tokens - FORCED_TOKENS
    forced = (PromptSpan(f"token {i + 1}", prefill + i, prefill + i + 1) for i in range(FORCED_TOKENS))
    return (PromptSpan("prefill", 0, prefill), *forced)


def _stages(component: Component, _: Step) -> tuple[Stage, ...]:
    return component.stages(component.kind == "block")


CASE = Case(bend=lambda _: leave_unchanged, stages=_stages, parts=parts, own_hidden_states=True)
