"""`caches`: caches other than one that grows by a token at a time, in all the ways in which they are handed over.

| step | cache |
|---|---|
| `fixed prefill`, `fixed token`, `fixed chunk` | a `StaticCache`: its unused keys are zeros, which the mask hides |
| `prefill` | a `DynamicCache`, given without `use_cache` |
| `other prefill` | another one of the same length |
| `reordered token` | its rows are reordered first, as beam search does; by position, where there is one |
| `cropped chunk` | its last token is dropped first and replaced, as speculative decoding does; without `use_cache` |

Positions and mask are those of `decode`. Only this case sees a cache that is taken for one that grows, keys that are
counted instead of looked up, keys that a bridge keeps next to the cache, and a cache that is found by its keyword.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import LOWEST, Inputs, InputSpec, Step, slice_tokens, stress_context
from cgverify.observe.stages import Stage
from cgverify.plan.cases import DECODED_TOKENS

UNUSED = 3
"""The keys of the fixed-size cache that no token ever fills."""

_QUIETLY = Conditions(use_cache=False)


def _steps(_: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    seq, end = spec.seq_len, spec.seq_len + DECODED_TOKENS
    fixed = [
        Step(f"fixed {name}", _with_all_keys(inputs, tokens, end + UNUSED), cache="fixed", cache_size=end + UNUSED)
        for name, tokens in (("prefill", slice(0, seq)), ("token", slice(seq, seq + 1)), ("chunk", slice(seq + 1, end)))
    ]
    before = slice_tokens(inputs, slice(0, seq))
    token = Step("token", slice_tokens(inputs, slice(seq, seq + 1), slice(1)), cache="grows")
    replaced = slice_tokens(inputs, slice(seq, end - 1)) | {"hidden_states": inputs["hidden_states"][:, seq + 1 : end]}
    return (
        *fixed,
        replace(token, name="prefill", inputs=before, conditions=_QUIETLY),
        Step("other prefill", before | {"hidden_states": before["hidden_states"].flip(1)}, cache="other"),
        replace(token, name="reordered token", conditions=Conditions(by_position=True), change_cache=reorder),
        replace(token, name="cropped chunk", inputs=replaced, conditions=_QUIETLY, change_cache=drop_last),
    )


def _with_all_keys(inputs: Inputs, tokens: slice, size: int) -> Inputs:
    """Return the inputs of some tokens, with a mask over all keys of a cache of fixed size."""
    piece = slice_tokens(inputs, tokens)
    mask = piece["attention_mask"]
    return piece | {"attention_mask": pad(mask, (0, size - mask.shape[-1]), value=LOWEST)}


def reorder(cache: Any) -> None:
    """Let each row continue the one before it, and the first two continue the last."""
    rows = next((layer.keys.shape[0] for layer in cache.layers if layer.is_initialized), 0)
    if not rows:  # a candidate may have put nothing there
        return
    order = [rows - 1, *range(rows - 1)]
    order[1:2] = [rows - 1] * len(order[1:2])
    cache.reorder_cache(torch.tensor(order))


def drop_last(cache: Any) -> None:
    cache.crop(-1)


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    """Return the stages; Hugging Face's side shows no new keys where attention is given a whole cache of fixed size."""
    return tuple(
        replace(stage, shown_with=()) if step.cache_size and stage.tap.endswith("hook_rot_k") else stage
        for stage in component.stages(True)
    )


CASE = Case(
    transform=stress_context,
    steps=_steps,
    stages=_stages,
    extra_tokens=DECODED_TOKENS,
)
