"""Faults that depend on the values or the form of inputs: extremes, masks, positions, strides, equal rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cgverify.selftest.candidates import Hidden, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.block import block
from cgverify.selftest.seeded.seeding import NORMS, attention, computed, is_hidden


def _clamped_scores(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    result: Tensor = scores(query, key, mask)
    return torch.where(is_hidden(result * 4), result, result.clamp(-50, 50))


def _tiny_flushed(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Tensor:
    z: Tensor = mix(pattern, value)
    return z * (z.abs() >= 1e-20)


def _minus_ten_thousand(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(query, key, mask.masked_fill(mask <= -1e4, torch.finfo(mask.dtype).min))


def _shared_mask_cut(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    if len(mask) == 1 < len(query):
        plain = torch.zeros_like(mask).masked_fill(is_hidden(mask), torch.finfo(mask.dtype).min)
        mask = torch.cat((mask, plain.expand(len(query) - 1, -1, -1, -1)))
    return scores(query, key, mask)


def _with_mask(change: Any) -> Any:
    """Compute attention with another mask, a function of the given one."""

    def attend(_: Any, inherited: Any, hidden_states: Tensor, **given: Any) -> Any:
        return inherited(hidden_states, **given | {"attention_mask": change(given.get("attention_mask"))})

    return attention(_attend=attend)


def _rising(_: Any, rotate: Any, query: Tensor, key: Tensor, position_ids: Tensor, *__: Any) -> Any:
    return rotate(query, key, position_ids.cummax(-1).values)


def _never_equal(_: Any, rotate: Any, query: Tensor, key: Tensor, position_ids: Tensor, *others: Any) -> Any:
    """Take a position that occurs twice for padding, which has position 0."""
    if position_ids.shape[1] < 2:
        return rotate(query, key, position_ids, *others)
    again = torch.zeros_like(position_ids, dtype=torch.bool)
    again[:, 1:] = position_ids[:, 1:] == position_ids[:, :-1]
    return rotate(query, key, position_ids.masked_fill(again, 0))


def _read_by_address(_: Any, project: Any, hidden_states: Tensor) -> Any:
    x = hidden_states
    if not x.is_contiguous() and x.untyped_storage().nbytes() >= (x.storage_offset() + x.numel()) * x.element_size():
        x = torch.as_strided(x, x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1), x.storage_offset())
    return project(x)


def _rows_like_the_first(_: Any, project: Any, hidden_states: Tensor) -> Any:
    query, key, value = project(hidden_states)
    equal = (hidden_states[:, 0] == hidden_states[0, 0]).all(-1)
    return tuple(torch.where(equal[:, None, None, None], x[:1], x) for x in (query, key, value))


def _constant_rows(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    constant = (x == x[..., :1]).all(-1, keepdim=True)
    return nn.LayerNorm.forward(norm, x) * ~constant


def _clamped(limit: float) -> Any:
    return lambda linear, x: nn.functional.linear(x, linear.weight, linear.bias).clamp(-limit, limit)


def _zero_rows_skipped(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, linear.weight, linear.bias) * (x != 0).any(-1, keepdim=True)


def _with_nan(given: dict[str, Any]) -> dict[str, Any]:
    hidden = given["hidden_states"].clone()
    hidden[0, 2, 5] = torch.nan
    return given | {"hidden_states": hidden}


def _masked_by(change: Any) -> Any:
    """Change the mask of the inputs of attention, whose rows may be equal."""
    return lambda given: given | {"attention_mask": change(given["attention_mask"].clone())}


def _soft(mask: Tensor) -> Tensor:
    return mask + torch.linspace(-2, 0, mask.shape[-1])


def _by_head(mask: Tensor) -> Tensor:
    return (mask + torch.arange(8.0).view(8, 1, 1) * torch.linspace(-1, 0, mask.shape[-1])).clamp(min=mask.min())


def _two_steps(mask: Tensor) -> Tensor:
    mask[..., :2] = -1e4
    return mask.masked_fill(mask == 0, -1.5e4)


def _at(*positions: int) -> Any:
    return lambda given: given | {"position_ids": torch.tensor([positions]).expand(len(given["hidden_states"]), -1)}


def _transposed(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"hidden_states": given["hidden_states"].transpose(0, 1).contiguous().transpose(0, 1)}


def _same_start(given: dict[str, Any]) -> dict[str, Any]:
    hidden = given["hidden_states"].clone()
    hidden[1, 0] = hidden[0, 0]
    return given | {"hidden_states": hidden}


_ATTENTION = {
    "ScoresClamped": Hidden(
        "Scores are clamped to ±50.", attention(_scores=_clamped_scores), ("scores",), user.attends(scale=30)
    ),
    "NotANumberBecomesZero": Hidden(
        "Weights that are NaN become 0.",
        attention(_pattern_of=lambda _, pattern_of, *args: torch.nan_to_num(pattern_of(*args), nan=0.0)),
        ("softmax",),
        user.attends(_with_nan),
    ),
    "TinyValuesFlushed": Hidden(
        "Elements of z below 1e-20 become 0, as where denormals are flushed early.",
        attention(_mix=_tiny_flushed),
        ("mix",),
        lambda bridge: user.attends(scale=1e-22)(bridge)[0] * 1e22,
    ),
    "TenThousandHides": Hidden(
        "A mask of −10⁴ or less hides a key, though all keys of a row may have it.",
        attention(_scores=_minus_ten_thousand),
        ("scores",),
        user.attends(_masked_by(_two_steps)),
    ),
    "MaskOfFirstHead": Hidden(
        "All heads have the mask of the first.",
        attention(_scores=lambda _, scores, query, key, mask: scores(query, key, mask[:, :1])),
        ("scores",),
        user.attends(_masked_by(_by_head)),
    ),
    "SharedMaskCut": Hidden(
        "Of a mask that the batch shares, only the first row gets the values; the others get what it hides.",
        attention(_scores=_shared_mask_cut),
        ("scores",),
        user.attends(lambda given: _masked_by(lambda mask: _soft(mask[:1]))(given)),
    ),
    "BooleanMaskInverted": Hidden(
        "True in a boolean mask hides a key.",
        _with_mask(lambda mask: ~mask if mask is not None and mask.dtype == torch.bool else mask),
        ("scores",),
        user.attends(_masked_by(lambda mask: (mask == 0) | (mask.mT == 0))),
        ("attn",),
    ),
    "PaddingMaskIgnored": Hidden(
        "A mask `[batch, keys]` is ignored.",
        _with_mask(lambda mask: None if mask is not None and mask.ndim == 2 else mask),
        ("scores",),
        user.attends(_masked_by(lambda _: torch.arange(8).expand(2, -1) > 2)),
        ("attn",),
    ),
    "PositionsNeverFall": Hidden(
        "A position that is less than one before it becomes that one, so that packed sequences are one.",
        attention(_rotate=_rising),
        ("rope",),
        user.attends(_at(0, 1, 2, 3, 0, 1, 2, 3)),
    ),
    "RepeatedPositionsAreZero": Hidden(
        "A position that is equal to the one before it becomes 0.",
        attention(_rotate=_never_equal),
        ("rope",),
        user.attends(_at(0, 1, 1, 2, 3, 3, 3, 4)),
    ),
    "ReadByAddress": Hidden(
        "Hidden states are read as if they were contiguous.",
        attention(_project=_read_by_address),
        ("input",),
        user.attends(_transposed),
    ),
    "RowsLikeTheFirst": Hidden(
        "A sequence that begins like the first one of its batch has its q, k and v.",
        attention(_project=_rows_like_the_first),
        ("project_q", "rope"),
        user.attends(_same_start),
    ),
}
_OTHERS = {
    "pre_activations_clamped": Hidden(
        "What `fc_in` returns is clamped to ±1000.",
        computed(_clamped(1000), "blocks.0.mlp.in"),
        ("mlp_in",),
        user.computes("mlp", lambda: user.states(scale=3000)),
        ("mlp", "mlp.in", "block"),
    ),
    "block_clamped_to_float16": Hidden(
        "The sum of a block is clamped to ±65504 so that float16 could hold it.",
        block(total=lambda residual, _, attended, mlp: (attended + mlp + residual).clamp(-65504, 65504)),
        ("block_sum",),
        user.attends(kind="block", scale=1e5),
        ("block",),
    ),
    "logits_made_finite": Hidden(
        "NaN and infinite logits become finite, so that sampling does not fail.",
        computed(lambda lin, x: torch.nan_to_num(nn.functional.linear(x, lin.weight, lin.bias)), "unembed"),
        ("unembed",),
        user.computes("unembed", lambda: _with_nan(user.states())),
        ("unembed",),
    ),
    "norm_of_constant_rows": Hidden(
        "The norm of a row of equal elements is 0, without the bias.",
        computed(_constant_rows, *NORMS),
        ("layer_norm",),
        user.computes("ln1", lambda: {"hidden_states": torch.ones(1, 2, user.WIDTH)}),
        ("ln1", "ln_final", "block"),
    ),
    "zero_rows_skipped": Hidden(
        "A token whose input is 0 gets no bias from `fc_out`, as if it were padding.",
        computed(_zero_rows_skipped, "blocks.0.mlp.out"),
        ("mlp_out",),
        lambda bridge: bridge.blocks[0].mlp.out(torch.zeros(1, 2, 4 * user.WIDTH)),
        ("mlp.out",),
    ),
}

FAULTS = hidden_faults(__name__, _ATTENTION | _OTHERS, "data")
__getattr__ = by_name(FAULTS)
