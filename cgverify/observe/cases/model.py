"""`model`: a prompt goes through the whole model, each side with the hidden states that it computed itself.

Embedding, every block, the last layer norm and the unembedding follow each other through the window, so this needs the
memory of one block. All but the last tokens of the prompt go first; the last ones follow one by one through each
layer's cache. They are the prompt's own tokens: tokens that a model generates would need every layer again for each.
Each component is judged by its stages, on the side's own input, and only that can fail. In addition a run reports how
far the two sides have drifted from each other and from the model without rounding (`cgverify/oracle/exact.py`), and
the top-1 prediction at every position. Two logits that tie within rounding may change places without any fault.

If the whole model fits into memory, the component `model` boots it, as a user does, and lets it generate
(`cgverify/verification/whole_model.py`). Only that sees what no single block shows: layers in another order, one layer
with another's weights, a last layer norm that is left out or applied twice, an unembedding tied to the embedding, a
cache that mixes layers up, anything that one block gets from another outside the residual stream.
"""

from __future__ import annotations

from cgverify.observe.cases.case import Case
from cgverify.observe.inputs import PromptSpan, leave_unchanged
from cgverify.plan.cases import FORCED_TOKENS


def prompt_spans(tokens: int) -> tuple[PromptSpan, ...]:
    """All but the last tokens at once, then the last ones one by one."""
    prefill = tokens - FORCED_TOKENS
    forced = (PromptSpan(f"token {i + 1}", prefill + i, prefill + i + 1) for i in range(FORCED_TOKENS))
    return (PromptSpan("prefill", 0, prefill), *forced)


CASE = Case(
    transform=leave_unchanged,
    stages=lambda component, _: component.stages(component.kind == "block"),
    spans=prompt_spans,
    own_hidden_states=True,
)
