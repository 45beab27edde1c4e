"""Seeded faults of the backward: the forward is correct bit for bit, and a gradient is wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from cgverify.selftest.candidates import Rows, named_candidates
from cgverify.selftest.seeded.seeding import attention
from cgverify.selftest.seeded.training import KeysDetached as KeysDetached


class _Scaled(Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return (g.to(torch.float64) * 1.01).to(g.dtype)


class _MixedBack(Function):
    @staticmethod
    def forward(ctx: Any, pattern: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(pattern, value)
        return pattern @ value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        pattern, value = ctx.saved_tensors
        return g @ value.mT, pattern @ g


class _Tangent(Function):
    """The identity with twice the tangent."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, g: Tensor) -> Tensor:
        return g

    @staticmethod
    def jvp(_: Any, tangent: Tensor) -> Tensor:
        return tangent * 2


class _Repeated(Function):
    """The identity, whose gradient is doubled when it is asked for again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.factor = 1.0
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        factor, ctx.factor = ctx.factor, 2.0
        return g * factor

    @staticmethod
    def jvp(_: Any, tangent: Tensor) -> Tensor:
        return tangent.clone()


class _Weighted(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.factor, None

    @staticmethod
    def jvp(_: Any, tangent: Tensor, __: None) -> Tensor:
        return tangent.clone()


def _applied(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)


def _halve_before_hook(_: Any, rotate: Any, *args: Any) -> tuple[Tensor, Tensor]:
    query, key = rotate(*args)
    return _applied(_Weighted, query, 0.5), key


def _freeze_key_weight(bridge: Any, project: Any, hidden_states: Tensor) -> tuple[Tensor, ...]:
    query, key, value = project(hidden_states)
    frozen = functional.linear(hidden_states, bridge.k.original_component.weight.detach())
    return query, frozen.unflatten(-1, key.shape[-2:]), value


def _straight_through(_: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Any:
    passed = scores.to(dtype)
    return pattern_of(scores.detach(), dtype).detach() + (passed - passed.detach()).nan_to_num(0.0)


_ROWS: Rows = {
    "KeyWeightFrozen": ("Only the weight of K gets no gradient.", attention(_project=_freeze_key_weight)),
    "GradientScaled": (
        "The gradient of z is multiplied by 1.01.",
        attention(_mix=lambda _, mix, pattern, value: _Scaled.apply(mix(pattern, value))),  # type: ignore[no-untyped-call]
    ),
    "WrongTranspose": (
        "The gradient of the values is mixed by the pattern instead of its transpose.",
        attention(_mix=lambda _, __, pattern, value: _MixedBack.apply(pattern, value).transpose(1, 2).flatten(-2)),  # type: ignore[no-untyped-call]
    ),
    "StraightThroughSoftmax": (
        "The gradient of the pattern is used as that of the scores.",
        attention(_pattern_of=_straight_through),
    ),
}
_OTHERS: Rows = {
    "TangentDoubled": (
        "The tangent of the queries is doubled.",
        attention(_scores=lambda _, scores, query, *others: scores(_applied(_Tangent, query), *others)),
    ),
    "DoubledWhenRepeated": (
        "A second backward pass through one graph doubles the gradient of z.",
        attention(_mix=lambda _, mix, *args: _applied(_Repeated, mix(*args))),
    ),
    "GradientAtHookHalved": (
        "The gradient of the queries is doubled before their hook, and halved after it.",
        attention(
            _rotate=_halve_before_hook,
            _scores=lambda _, scores, query, *others: scores(_applied(_Weighted, query, 2.0), *others),
        ),
    ),
}
for _candidate in named_candidates(__name__, _ROWS | _OTHERS):
    globals()[_candidate.__name__] = _candidate

FAULTS: dict[str, tuple[set[str], set[str]]] = {
    "KeysDetached": ({"grad.attn.k", "grad.hidden_states"}, set()),
    "KeyWeightFrozen": ({"grad.attn.k"}, set()),
    "GradientScaled": (
        {"grad.attn.v"},
        {"grad.hidden_states", "grad.attn.q", "grad.attn.k", "grad.ln1", "grad.ln1.bias"},
    ),
    "WrongTranspose": ({"grad.attn.v", "grad.hidden_states"}, set()),
    "StraightThroughSoftmax": ({"grad.attn.q", "grad.attn.k", "grad.hidden_states"}, set()),
}
"""The gradients of inputs and weights that must be blamed, and the others that may be. No other one may fail."""

HIDDEN = "cgverify.selftest.seeded"
ONE_STEP: dict[str, tuple[str, str, set[str]]] = {
    f"{HIDDEN}.gradients:returned_pattern_cut_off": ("attn", "backward", {"grad.hook_pattern", "hook_pattern"}),
    f"{HIDDEN}.gradients:gradient_around_the_hook": ("attn", "backward", {"grad.hook_pattern", "hook_pattern"}),
    f"{HIDDEN}.gradients:MaskDetached": ("attn", "backward", {"grad.attention_mask"}),
    f"{HIDDEN}.gradients:ReturnedPatternDetached": ("attn", "backward", {"returned_pattern", "grad.attn.q"}),
    f"{HIDDEN}.gradients:CachedKeysDetached": ("attn", "cached prefix", {"cached.hidden_states"}),
    f"{HIDDEN}.gradients:FirstDerivativeOnly": ("attn", "derivatives", {"second.hidden_states"}),
    f"{HIDDEN}.gradients:no_forward_derivative": ("mlp", "derivatives", {"raised"}),
    f"{HIDDEN}.gradients:no_gradient_for_token_0": ("embed", "backward", {"grad.embed"}),
    f"{HIDDEN}.gradients:unembedding_bias_frozen": ("unembed", "backward", {"grad.unembed.bias"}),
    f"{HIDDEN}.gradients:final_gain_frozen": ("ln_final", "backward", {"grad.ln_final"}),
    f"{HIDDEN}.gradients:weight_gradient_doubled": ("attn.o", "backward", {"grad.attn.o"}),
    f"{HIDDEN}.interventions:backward_hook_unheard": ("attn", "backward", {"grad.hook_pattern"}),
    "gradient_faults:TangentDoubled": ("attn", "derivatives", {"tangent.returned"}),
    "gradient_faults:DoubledWhenRepeated": ("attn", "backward", {"grad.hidden_states"}),
    "gradient_faults:GradientAtHookHalved": ("attn", "backward", {"grad.hook_rot_q"}),
}
"""A component, the only step of `backward` in which a fault shows there, and taps that must be blamed."""
