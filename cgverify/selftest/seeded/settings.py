"""Faults that only another setting shows: a cast table, a row that sees no key, flags."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Rows, by_name, named_faults
from cgverify.selftest.seeded.patches import PROJECTIONS
from cgverify.selftest.seeded.rotation import by_table
from cgverify.selftest.seeded.seeding import attention, rehooked


def _hidden(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return scores <= torch.finfo(dtype).min / scores.shape[-1]


def _blind_rows_zeroed(_: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Tensor:
    pattern: Tensor = pattern_of(scores, dtype)
    return pattern.masked_fill(_hidden(scores, dtype).all(-1, keepdim=True), 0)


def _own_keys_shown(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    lowest = torch.finfo(mask.dtype).min
    blind = (mask == lowest).all(-1, keepdim=True)
    padding = (mask[:, :, -1:] == lowest).transpose(-1, -2)
    if mask.shape[-1] == mask.shape[-2]:
        own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device) & blind & ~padding
        mask = mask.masked_fill(own, 0)
    return scores(query, key, mask)


def _keep_table(bridge: Any, wrap: Any, original: Any) -> None:
    wrap(original)
    bridge.__dict__["kept"] = bridge._table().clone()


def _float32_table(_: Any, table: Tensor) -> Tensor:
    return table.to(torch.promote_types(table.dtype, torch.float32))


def _results_reversed(bridge: Any, compute: Any, *args: Any) -> Any:
    hook = bridge._modules["hook_result"]
    bridge.__dict__["hook_result"] = lambda result: hook(result.flip(-2)).flip(-2)
    try:
        return compute(*args)
    finally:
        del bridge.__dict__["hook_result"]


def _without_residual(bridge: Any, project: Any, hidden_states: Tensor) -> Any:
    bridge._captured_pre_ln_residual = None
    return project(hidden_states)


_CAST_TABLES: Rows = {
    "TableAlwaysFloat32": (
        "A table that was cast with the model is cast to float32 before the rotation.",
        attention(_rotate=by_table(_float32_table)),
    ),
    "TableOfItsOwn": (
        "The bridge keeps the table of its boot, which `model.to(dtype)` does not cast.",
        attention(set_original_component=_keep_table, _rotate=by_table(lambda bridge, _: bridge.kept)),
    ),
}
_BLIND_ROWS: Rows = {
    "MaskedRowZeroed": (
        "A query that sees no key has a pattern of 0; Hugging Face's is uniform.",
        attention(_pattern_of=_blind_rows_zeroed),
    ),
    "MaskedRowNotANumber": (
        "Hidden keys score −∞, so that the pattern of a query that sees no key is NaN.",
        attention(
            _pattern_of=lambda _, pattern_of, scores, dtype: pattern_of(
                scores.masked_fill(_hidden(scores, dtype), -torch.inf), dtype
            )
        ),
    ),
}
_BLIND_SCORES: Rows = {
    "TokensSeeThemselves": (
        "A query that sees no key sees its own, unless it is padding, which is meant to prevent NaN.",
        attention(_scores=_own_keys_shown),
    ),
}
_IGNORED_RESULT: Rows = {
    "ResultsIgnored": (
        "`use_attn_result` has no effect, as in TransformerLens.",
        attention(_output=lambda bridge, _, z: bridge.original_component.resid_dropout(bridge.o(z))),
    ),
}
_IGNORED_FORK: Rows = {
    "SplitInputFlagIgnored": (
        "`use_split_qkv_input` and `use_attn_in` have no effect, as in TransformerLens.",
        attention(_is_split_qkv_fork_active=lambda *_: False),
    ),
}
_RESULT: Rows = {
    "ResultsInReverse": (
        "The sum is correct, and the results of the heads are shown in reverse order.",
        attention(_compute_per_head_result=_results_reversed),
    ),
}
_COPIES: Rows = {
    "CopiesAfterNorm": (
        "In a block, the heads' copies are made of the output of ln1, not of its input.",
        attention(_project=_without_residual),
    ),
}
_NORMS: Rows = {
    "NormalizedTwice": (
        "ln1 is applied twice to the copy of each head.",
        attention(_apply_ln1_per_head=lambda _, normalize, x: normalize(normalize(x))),
    ),
}
_BRANCH: Rows = {
    "branch_shown_doubled": (
        "`hook_mlp_in` shows the residual times 2.",
        rehooked("blocks.0.hook_mlp_in", lambda show, x: show(x * 2) / 2),
    ),
}
_BLOCK = ("block",)

FAULTS = (
    *named_faults(__name__, _CAST_TABLES, "rope", case="cast_table"),
    *named_faults(__name__, _BLIND_ROWS, "softmax", case="masked_row"),
    *named_faults(__name__, _BLIND_SCORES, "scores", case="masked_row"),
    *named_faults(__name__, _IGNORED_RESULT, "result", "patched", case="gated"),
    *named_faults(__name__, _IGNORED_FORK, "fork", "patched", case="gated"),
    *named_faults(__name__, _RESULT, "result", case="gated"),
    *named_faults(__name__, _COPIES, "fork", *PROJECTIONS, kinds=_BLOCK, case="gated"),
    *named_faults(__name__, _NORMS, *PROJECTIONS, kinds=_BLOCK, case="gated"),
    *named_faults(__name__, _BRANCH, "fork", "layer_norm", kinds=_BLOCK, case="gated"),
)
__getattr__ = by_name(FAULTS)
