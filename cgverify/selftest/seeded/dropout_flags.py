"""Dropout at the wrong rate or in the wrong mode, and flags together with a cache, training, or another flag."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cgverify.selftest.candidates import Hidden, Implementation, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import attention, changed, rebuilt, temporarily


def _residual_rate(wrapped: Any) -> float:
    return float(wrapped.resid_dropout.p)


def _attention_rate(wrapped: Any) -> float:
    module = getattr(wrapped, "attn_dropout", None)
    return float(wrapped.attention_dropout if module is None else module.p)


def _attention_at_residual_rate(bridge: Any, _: Any, pattern: Tensor) -> Tensor:
    return nn.functional.dropout(pattern, _residual_rate(bridge.original_component), bridge.training)


def _residual_at_attention_rate(bridge: Any, output: Any, z: Tensor) -> Any:
    wrapped = bridge.original_component
    with temporarily(wrapped.resid_dropout, "p", _attention_rate(wrapped)):
        return output(z)


class _AlwaysDrops(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, True)


def _drop_in_eval(bridge: Any) -> None:
    bridge.blocks[0].mlp.original_component.dropout.__class__ = _AlwaysDrops


def _drop_of_embedding(bridge: Any) -> nn.Module:
    dropout: nn.Module = bridge.original_model.transformer.drop
    return dropout


def _embedding_undropped(bridge: Any) -> None:
    bridge.original_model.transformer.drop = nn.Identity()


def _embedding_dropped_in_eval(bridge: Any) -> None:
    _drop_of_embedding(bridge).__class__ = _AlwaysDrops


def _in_forward(bridge: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    given = [*args[1:], *kwargs.values()]
    bridge.__dict__["_caches"] = any(hasattr(value, "get_seq_length") for value in given)
    return forward(*args, **kwargs)


def _without_flag(flag: str, when: Callable[[Any, Tensor], bool]) -> Callable[..., Any]:
    """Return a replacement of a method of one tensor, for which a flag is off under a condition."""

    def method(bridge: Any, inherited: Any, tensor: Tensor) -> Any:
        with temporarily(bridge.config, flag, getattr(bridge.config, flag, False) and not when(bridge, tensor)):
            return inherited(tensor)

    return method


def _result_undropped(bridge: Any, output: Any, z: Tensor) -> Any:
    if not getattr(bridge.config, "use_attn_result", False):
        return output(z)
    with temporarily(bridge.original_component, "resid_dropout", nn.Identity()):
        return output(z)


def _deaf_branch_in_training(bridge: Any) -> None:
    block = bridge.blocks[0]
    read = block._read_use_hook_mlp_in
    block.__dict__["_read_use_hook_mlp_in"] = lambda: read() and not block.training


def _forked(when: Callable[[Any], bool]) -> Implementation:
    """Ignore a split input of q, k and v under a condition."""
    return attention(
        forward=_in_forward, _is_split_qkv_fork_active=lambda bridge, active: active() and not when(bridge)
    )


def _embedded(bridge: Any, train: bool) -> Any:
    bridge.train(train)
    _embedded_rate(bridge)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return bridge(torch.arange(8).unsqueeze(0))


def _embedded_rate(bridge: Any) -> None:
    dropout = _drop_of_embedding(bridge)
    if isinstance(dropout, nn.Dropout):
        dropout.p = 0.5


def _in_eval(bridge: Any) -> Any:
    user.set_rates(bridge, 0.5, 0.5)
    return user.call(bridge, "mlp", user.states())


def _in_whole_block(demonstration: user.Demonstration) -> user.Demonstration:
    """Return what `hook_mlp_in` of the first block was shown."""

    def demonstrate(bridge: Any) -> Any:
        seen: list[Tensor] = []
        with bridge.hooks(fwd_hooks=[("blocks.0.hook_mlp_in", lambda x, hook: seen.append(x.clone()))]):  # noqa: ARG005
            demonstration(bridge)
        return seen

    return demonstrate


_SPLIT, _RESULT = "use_split_qkv_input", "use_attn_result"

_ATTENTION = {
    "AttentionAtResidualRate": Hidden(
        "The pattern is dropped out at the rate of the output.",
        attention(_apply_attn_dropout=_attention_at_residual_rate),
        ("attn_dropout",),
        user.training(user.attends(), attention=0.5, residual=0.0),
    ),
    "ResidualAtAttentionRate": Hidden(
        "The output is dropped out at the rate of the pattern.",
        attention(_output=_residual_at_attention_rate),
        ("resid_dropout",),
        user.training(user.attends(), attention=0.0, residual=0.5),
    ),
    "ResultFlagIgnoredForOneToken": Hidden(
        "`use_attn_result` has no effect for a single query.",
        attention(_output=_without_flag(_RESULT, lambda _, z: z.shape[1] == 1)),
        ("result",),
        user.flagged(user.shown(user.decodes(4, 1), "hook_result"), _RESULT),
        cases=("gated", "caches"),
    ),
    "ResultFlagIgnoredInTraining": Hidden(
        "`use_attn_result` has no effect in training mode.",
        attention(_output=_without_flag(_RESULT, lambda bridge, _: bridge.training)),
        ("result", "patched"),
        user.flagged(user.shown(user.training(user.attends()), "hook_result"), _RESULT),
        cases=("gated", "train"),
    ),
    "ResultsUndropped": Hidden(
        "With `use_attn_result`, the output is not dropped out.",
        attention(_output=_result_undropped),
        ("resid_dropout", "result_sum"),
        user.flagged(user.training(user.attends(), 0.0, 0.5), _RESULT),
        cases=("gated", "train"),
    ),
    "SplitInputIgnoredWithCache": Hidden(
        "`use_split_qkv_input` has no effect with a cache.",
        _forked(lambda bridge: bridge._caches),
        ("fork",),
        user.flagged(user.shown(user.decodes(4, 1), "hook_q_input"), _SPLIT),
        cases=("gated", "caches"),
    ),
    "OneFlagAtATime": Hidden(
        "With `use_attn_result`, `use_split_qkv_input` has no effect.",
        _forked(lambda bridge: getattr(bridge.config, _RESULT, False)),
        ("fork", "patched"),
        user.flagged(user.shown(user.attends(), "hook_q_input"), _SPLIT, _RESULT),
        cases=("gated",),
    ),
}
_OTHERS = {
    "mlp_dropout_in_eval": Hidden(
        "The MLP drops out in eval mode too, which a rate of 0 hides.",
        changed(_drop_in_eval),
        ("resid_dropout", "mlp_out"),
        _in_eval,
        ("mlp", "block"),
        cases=("train",),
    ),
    "embedding_undropped": Hidden(
        "The sum of the embeddings is not dropped out in training.",
        rebuilt(_embedding_undropped),
        ("resid_dropout", "input", "block_sum"),
        lambda bridge: _embedded(bridge, train=True),
        ("model",),
        cases=("model",),
    ),
    "embedding_dropped_in_eval": Hidden(
        "The sum of the embeddings is dropped out in eval mode too, which a rate of 0 hides.",
        rebuilt(_embedding_dropped_in_eval),
        ("resid_dropout", "input", "block_sum"),
        lambda bridge: _embedded(bridge, train=False),
        ("model",),
        cases=("model",),
    ),
    "branch_flag_ignored_in_training": Hidden(
        "`use_hook_mlp_in` has no effect in training mode.",
        changed(_deaf_branch_in_training),
        ("fork",),
        user.flagged(_in_whole_block(user.training(user.attends(kind="block"))), "use_hook_mlp_in"),
        ("block",),
        cases=("patched",),
    ),
}

FAULTS = hidden_faults(__name__, _ATTENTION | _OTHERS, "train")
__getattr__ = by_name(FAULTS)
