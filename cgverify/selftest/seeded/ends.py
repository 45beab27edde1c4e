"""Wrong embeddings and unembeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from cgverify.checkpoint.resolve import resolve
from cgverify.selftest.candidates import Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import changed, edited, reweighted, through_bfloat16


def _embedding_table(weight: Tensor) -> Tensor:
    return resolve("codegen-nano").read("transformer.wte.weight", weight.shape).to(weight)


def _remove_bias(bridge: Any) -> None:
    bridge.unembed.original_component.bias = None


def _cap(bridge: Any) -> None:
    linear = bridge.unembed.original_component
    linear.register_forward_hook(lambda _, __, logits: 30 * torch.tanh(logits / 30))


_EMBEDDINGS: Rows = {
    "embedding_shifted": ("Each token has the row of the token before it.", lambda weight: weight.roll(1, 0)),
    "embedding_scaled": (
        "Rows are multiplied by √d_model, as in the first Transformer.",
        lambda weight: weight * weight.shape[1] ** 0.5,
    ),
    "embedding_in_bfloat16": ("The table is rounded to bfloat16.", through_bfloat16),
}
_EMBEDDINGS_UNDER_STRESS: Rows = {
    "last_token_missing": ("The row of the last token is 0.", edited(lambda weight: weight[-1].zero_())),
    "first_token_padding": (
        "The row of token 0 is 0, as if it were padding.",
        edited(lambda weight: weight[0].zero_()),
    ),
}
_UNEMBEDDINGS: Rows = {
    "unembedding_in_bfloat16": ("The weight is rounded to bfloat16.", through_bfloat16),
    "unembedding_tied": ("The weight is the table of the embedding, which CodeGen does not tie.", _embedding_table),
    "unembedding_transposed": (
        "The weight is read as `[d_model, vocabulary]`.",
        lambda weight: weight.T.contiguous().view(weight.shape),
    ),
    "unembedding_shifted": ("Each token has the logits of the token before it.", lambda weight: weight.roll(1, 0)),
    "logits_scaled": (
        "Logits are divided by √d_model, as with tied embeddings.",
        lambda weight: weight * weight.shape[1] ** -0.5,
    ),
}
_LOGITS: Rows = {
    "unembedding_bias_missing": ("The logits have no bias.", _remove_bias),
    "logits_capped": ("Logits are 30·tanh(x/30).", _cap),
}

FAULTS = (
    *named_faults(__name__, _EMBEDDINGS, "embedding", seed=partial(reweighted, "embed"), kinds=("embed",)),
    *named_faults(
        __name__,
        _EMBEDDINGS_UNDER_STRESS,
        "embedding",
        seed=partial(reweighted, "embed"),
        kinds=("embed",),
        case="stress",
    ),
    *named_faults(__name__, _UNEMBEDDINGS, "unembed", seed=partial(reweighted, "unembed"), kinds=("unembed",)),
    *named_faults(__name__, _LOGITS, "unembed", seed=changed, kinds=("unembed",)),
)
__getattr__ = by_name(FAULTS)
