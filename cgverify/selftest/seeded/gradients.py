"""Wrong gradients where an output's gradient in inputs and weights does not show it. The forward is correct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers import DynamicCache

from cgverify.selftest.candidates import Hidden, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import activated, attention, changed, computed, rehooked, returning


class _Around(Function):
    """Return the second tensor, and give its gradient to the first."""

    @staticmethod
    def forward(_: Any, __: Tensor, returned: Tensor) -> Tensor:
        return returned.view_as(returned)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _SoftmaxOnce(Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        pattern = scores.softmax(-1)
        ctx.save_for_backward(pattern)
        return pattern

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (pattern,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(gradient, pattern, -1, pattern.dtype)


class _GeluBackwardOnly(Function):
    """gelu_new whose gradient is that of a saved graph, without a forward derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.activation = activation
        return activation(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            y = ctx.activation(x)
        return torch.autograd.grad(y, x, gradients[0], create_graph=torch.is_grad_enabled())[0], None


def _apply(function: type[Function], *args: Any) -> Any:
    return function.apply(*args)


def _softmax_once(_: Any, softmax: Any, scores: Tensor) -> Any:
    return _apply(_SoftmaxOnce, scores) if scores.requires_grad else softmax(scores)


def _detach_if_new(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    returned = show(x)
    return returned if returned is x else returned.detach()


def _lead_around(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    returned = show(x)
    return returned if returned is x else _apply(_Around, x, returned)


def _doubled_from_second(linear: nn.Linear, x: Tensor) -> Tensor:
    weight = linear.weight
    if torch.is_grad_enabled() and weight.requires_grad:
        linear.__dict__["_calls"] = calls = linear.__dict__.get("_calls", 0) + 1
        if calls > 1:
            weight = weight * 2 - weight.detach()
    return nn.functional.linear(x, weight, linear.bias)


def _detach_stored_keys(bridge: Any, extend: Any, cache: Any, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    start = int(cache.get_seq_length(bridge._layer_idx))
    keys, values = extend(cache, key.detach(), value)
    return torch.cat((keys[:, :, :start], key, keys[:, :, start + key.shape[2] :]), 2), values


def _pad_with_token_0(bridge: Any) -> None:
    bridge.embed.original_component.padding_idx = 0


def _attended(bridge: Any, given: dict[str, Any]) -> Tensor:
    output: Tensor = user.call(bridge, "attn", given)[0]
    return output


def _through_leaf(show: Callable[[Any, dict[str, Any]], Tensor]) -> user.Demonstration:
    """Return the gradient in a pattern that a hook returned."""

    def demonstrate(bridge: Any) -> Any:
        leaf = torch.full((2, 8, 8, 8), 0.1, requires_grad=True)
        with user.hooks(bridge, hook_pattern=lambda _: leaf):
            of = user.differentiated(show, lambda *_: leaf, lambda _, given: given["hidden_states"])
            return of(bridge)

    return demonstrate


def _output_weight(bridge: Any, _: Any) -> Tensor:
    weight: Tensor = bridge.blocks[0].attn.o.original_component.weight
    return weight.requires_grad_()


def _twice(bridge: Any) -> Any:
    demonstrate = user.differentiated(_attended, _output_weight)
    demonstrate(bridge)
    return demonstrate(bridge)


def _second_derivative(bridge: Any) -> Any:
    given = user.inputs()
    hidden = given["hidden_states"].requires_grad_()
    with torch.enable_grad():
        output = _attended(bridge, given)
        (first,) = torch.autograd.grad(output.square().sum(), hidden, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), hidden)
    return second


def _directional_derivative(bridge: Any) -> Any:
    hidden = user.states()["hidden_states"]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(hidden, torch.ones_like(hidden))
        output = user.call(bridge, "mlp", {"hidden_states": dual})
        return torch.autograd.forward_ad.unpack_dual(output).tangent


def _after_a_prefix(bridge: Any) -> Any:
    cache, first = DynamicCache(), user.inputs(2, 4)
    hidden = first["hidden_states"].requires_grad_()
    with torch.enable_grad():
        user.call(bridge, "attn", first, cache)
        output = user.call(bridge, "attn", user.inputs(2, 1, 4, 1), cache)[0]
        (gradient,) = torch.autograd.grad(output.square().sum(), hidden)
    return gradient


def _weight_gradient(kind: str, name: str, given: Callable[[], dict[str, Any]]) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        weight = getattr(bridge.get_submodule(kind).original_component, name).requires_grad_()
        weight.grad = None
        with torch.enable_grad():
            output = user.call(bridge, kind, given())
            if output.requires_grad:
                (output * torch.linspace(-1, 1, output.shape[-1])).sum().backward()
        return "no gradient" if weight.grad is None else weight.grad

    return demonstrate


_ATTENTION = {
    "returned_pattern_cut_off": Hidden(
        "A pattern that a hook returned takes no gradient.",
        rehooked("blocks.0.attn.hook_pattern", _detach_if_new),
        ("gradient", "conduct"),
        _through_leaf(_attended),
    ),
    "gradient_around_the_hook": Hidden(
        "The gradient of a pattern that a hook returned goes to the one that it was shown.",
        rehooked("blocks.0.attn.hook_pattern", _lead_around),
        ("gradient", "conduct"),
        _through_leaf(_attended),
    ),
    "FirstDerivativeOnly": Hidden(
        "The softmax cannot be differentiated twice.",
        attention(_masked_softmax=_softmax_once),
        ("gradient", "forward"),
        user.raising(_second_derivative),
    ),
    "MaskDetached": Hidden(
        "A mask that is learned gets no gradient.",
        attention(_scores=lambda _, scores, query, key, mask: scores(query, key, mask.detach())),
        ("gradient",),
        user.differentiated(_attended, lambda _, given: given["attention_mask"]),
    ),
    "ReturnedPatternDetached": Hidden(
        "The pattern that the forward returns is detached.",
        returning(lambda output, pattern: (output, pattern.detach())),
        ("gradient", "conduct", "returned"),
        user.raising(
            user.differentiated(
                lambda bridge, given: user.call(bridge, "attn", given)[1], lambda _, given: given["hidden_states"]
            )
        ),
        ("attn",),
    ),
    "CachedKeysDetached": Hidden(
        "No gradient reaches a prefix through the keys that were cached for it.",
        attention(_extend_cache=_detach_stored_keys),
        ("gradient",),
        _after_a_prefix,
        kinds=("block", "attn"),
        cases=("caches", "backward"),
    ),
}
_OTHERS = {
    "weight_gradient_doubled": Hidden(
        "From the second forward on, the gradient of the output projection's weight is doubled.",
        computed(_doubled_from_second, "blocks.0.attn.o"),
        ("gradient", "conduct"),
        _twice,
        ("attn", "attn.o", "block"),
    ),
    "no_forward_derivative": Hidden(
        "The activation has no forward derivative, which `jvp` needs.",
        activated(lambda activation, x: _apply(_GeluBackwardOnly, x, activation)),
        ("gradient", "forward"),
        user.raising(_directional_derivative),
        ("mlp", "block"),
    ),
    "no_gradient_for_token_0": Hidden(
        "The row of token 0 gets no gradient, as if it were padding.",
        changed(_pad_with_token_0),
        ("gradient",),
        _weight_gradient("embed", "weight", lambda: {"input_ids": torch.tensor([[0, 1]])}),
        ("embed",),
    ),
    "unembedding_bias_frozen": Hidden(
        "The bias of the unembedding gets no gradient.",
        computed(lambda linear, x: nn.functional.linear(x, linear.weight, linear.bias.detach()), "unembed"),
        ("gradient",),
        _weight_gradient("unembed", "bias", user.states),
        ("unembed",),
    ),
    "final_gain_frozen": Hidden(
        "The gain of ln_final gets no gradient.",
        computed(
            lambda norm, x: nn.functional.layer_norm(
                x, norm.normalized_shape, norm.weight.detach(), norm.bias, norm.eps
            ),
            "ln_final",
        ),
        ("gradient",),
        _weight_gradient("ln_final", "weight", user.states),
        ("ln_final",),
    ),
}

FAULTS = hidden_faults(__name__, _ATTENTION | _OTHERS, "backward")
__getattr__ = by_name(FAULTS)
