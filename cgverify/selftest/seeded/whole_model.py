"""Faults of the bridge around the components: its inputs, generation, the weights by name, hook names, layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.candidates import Hidden, Implementation, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import changed, in_view, rebuilt


def _override(module: Any, **members: Any) -> None:
    """Make a module an instance of a subclass with other members."""
    module.__class__ = type(type(module).__name__, (type(module),), members)


def _overridden(**members: Any) -> Implementation:
    """Return a function that overrides members of the whole bridge."""
    return rebuilt(lambda bridge: _override(bridge, **members))


def _overridden_in(path: str, **members: Any) -> Implementation:
    """Return a function that overrides members of a module of the bridge."""
    return changed(lambda bridge: _override(bridge.get_submodule(path), **members))


def _calling(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Implementation:
    """Let a method of the whole bridge be called with other keywords."""

    def seed(bridge: Any) -> None:
        inherited = getattr(type(bridge), name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return inherited(self, *args, **change(kwargs))

        _override(bridge, **{name: method})

    return rebuilt(seed)


def _first_mask(kwargs: dict[str, Any]) -> dict[str, Any]:
    mask = kwargs.get("attention_mask")
    return kwargs if mask is None or mask.ndim != 2 else kwargs | {"attention_mask": mask[:1].expand_as(mask)}


def _without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda kwargs: {key: value for key, value in kwargs.items() if key != name}


def _one_less(kwargs: dict[str, Any]) -> dict[str, Any]:
    new = kwargs.get("max_new_tokens", 10)
    return kwargs | {"max_new_tokens": new - 1 if new > 1 else new}


def _one_layer_more(kwargs: dict[str, Any]) -> dict[str, Any]:
    layer = kwargs.get("stop_at_layer")
    return kwargs if not layer else kwargs | {"stop_at_layer": layer + 1}


def _twice_used(path: str) -> Implementation:
    """Give the layer after the middle the weight of the layer before it, in a bridge of several layers."""

    def seed(bridge: Any) -> None:
        if all(map(in_view, bridge.blocks)):
            here, before = (bridge.blocks[layer].get_submodule(path).original_component for layer in (3, 2))
            here.weight = before.weight

    return rebuilt(seed)


def _properties(**properties: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: property(read) for name, read in properties.items()}


def _attention_with(**properties: Callable[[Any], Any]) -> Implementation:
    return type("Seeded", (CodeGenAttentionBridge,), _properties(**properties))


def _exchanged_names(self: Any) -> dict[str, Any]:
    points: dict[str, Any] = cast(Any, type(self).__mro__[1]).hook_dict.fget(self)
    for layer in range(len(self.blocks)):
        first, second = (f"blocks.{layer}.attn.hook_rot_{name}" for name in "qk")
        points[first], points[second] = points[second], points[first]
    return points


def _exchange_in_cache(bridge: Any) -> None:
    inherited = type(bridge).run_with_cache

    def run_with_cache(self: Any, *args: Any, **kwargs: Any) -> Any:
        returned, cache = inherited(self, *args, **kwargs)
        values = getattr(cache, "cache_dict", cache)
        for layer in range(len(self.blocks)):
            first, second = (f"blocks.{layer}.hook_{name}" for name in ("attn_out", "mlp_out"))
            if first in values and second in values:
                values[first], values[second] = values[second], values[first]
        return returned, cache

    _override(bridge, run_with_cache=run_with_cache)


def _unshifted_loss(self: Any, logits: Tensor, tokens: Tensor, *_: Any, **__: Any) -> Tensor:  # noqa: ARG001
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def _rows_like_first(bridge: Any) -> None:
    inherited = type(bridge).forward

    def forward(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(input, Tensor) and input.ndim == 2 and len(input) > 1 and (input[:, 0] == input[0, 0]).all():
            input = torch.cat((input[:1, :2].expand(len(input), -1), input[:, 2:]), 1)
        return inherited(self, input, *args, **kwargs)

    _override(bridge, forward=forward)


# --- what a user does -------------------------------------------------------------------------------------------------

_TOKENS = torch.arange(12).view(2, 6) * 7 + 3
_PADDING = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@torch.no_grad()
def _with_padding(bridge: Any) -> Any:
    return bridge(_TOKENS, attention_mask=_PADDING)[:, -1]


@torch.no_grad()
def _with_the_other_padding(bridge: Any) -> Any:
    return bridge(_TOKENS, attention_mask=_PADDING.flip(0))[:, -1]


def _generates(**keywords: Any) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return bridge.generate(
                _TOKENS, max_new_tokens=6, do_sample=False, return_type="tokens", verbose=False, **keywords
            )

    return demonstrate


@torch.no_grad()
def _logits(bridge: Any) -> Any:
    return bridge(_TOKENS)


@torch.no_grad()
def _loss(bridge: Any) -> Any:
    return bridge(_TOKENS, return_type="loss")


@torch.no_grad()
def _same_first_token(bridge: Any) -> Any:
    tokens = _TOKENS.clone()
    tokens[:, 0] = 5
    return bridge(tokens)[1]


def _cached(name: str) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(_TOKENS)[1][name]

    return demonstrate


@torch.no_grad()
def _first_two_layers(bridge: Any) -> Any:
    return bridge(_TOKENS, stop_at_layer=2)


def _reads(path: str) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        owner, _, name = path.rpartition(".")
        value: Tensor = getattr(bridge.get_submodule(owner), name)
        return value.detach().clone()

    return demonstrate


def _edits(bridge: Any) -> Any:
    with torch.no_grad():
        bridge.blocks[0].mlp.W_out.mul_(2)
    return user.call(bridge, "mlp", user.states())


_MODEL = ("model",)
_INPUTS = {
    "padding_dropped": Hidden(
        "The model's `attention_mask` is dropped, so that padding is seen.",
        _calling("forward", _without("attention_mask")),
        ("scores",),
        _with_padding,
        _MODEL,
    ),
    "padding_of_first_row": Hidden(
        "All rows of a batch have the padding of the first.",
        _calling("forward", _first_mask),
        ("scores",),
        _with_the_other_padding,
        _MODEL,
    ),
    "common_tokens_shared": Hidden(
        "Rows of a batch that share their first token get the second token of the first row as well.",
        rebuilt(_rows_like_first),
        ("embedding",),
        _same_first_token,
        _MODEL,
    ),
    "stops_a_layer_late": Hidden(
        "`stop_at_layer` runs one layer more.",
        _calling("forward", _one_layer_more),
        ("returned", "input"),
        _first_two_layers,
        _MODEL,
    ),
    "loss_not_shifted": Hidden(
        "The loss compares each token's logits with that token, not with the next one.",
        _overridden(loss_fn=_unshifted_loss),
        ("returned",),
        _loss,
        _MODEL,
    ),
}
_GENERATION = {
    "generation_ignores_padding": Hidden(
        "`generate` drops its `attention_mask`.",
        _calling("generate", _without("attention_mask")),
        ("generation", "scores"),
        _generates(attention_mask=_PADDING),
        _MODEL,
    ),
    "generation_one_token_short": Hidden(
        "`generate` returns one token less than it was asked for.",
        _calling("generate", _one_less),
        ("generation",),
        _generates(),
        _MODEL,
    ),
    "generation_samples": Hidden(
        "`generate` samples though `do_sample` is off.",
        # So hot that it does not choose the greatest logits by chance, which the case `model` compares with.
        _calling("generate", lambda kwargs: kwargs | {"do_sample": True, "temperature": 10.0}),
        ("generation",),
        _generates(),
        _MODEL,
    ),
}
_LAYERS = {
    "mlp_of_layer_2_twice": Hidden(
        "Layer 3 has `fc_in` of layer 2, when all layers are booted.",
        _twice_used("mlp.in"),
        ("mlp_in",),
        _logits,
        _MODEL,
    ),
    "norm_of_layer_2_twice": Hidden(
        "Layer 3 has ln1's gain of layer 2, when all layers are booted.",
        _twice_used("ln1"),
        ("layer_norm",),
        _logits,
        _MODEL,
    ),
}
_NAMES = {
    "rotated_names_exchanged": Hidden(
        "By name, `hook_rot_q` is the hook of the rotated keys, and `hook_rot_k` that of the queries.",
        _overridden(**_properties(hook_dict=_exchanged_names)),
        ("conduct", "rope"),
        _cached("blocks.0.attn.hook_rot_q"),
        _MODEL,
    ),
    "outputs_exchanged_in_cache": Hidden(
        "`run_with_cache` keeps `hook_attn_out` as `hook_mlp_out`, and the reverse.",
        rebuilt(_exchange_in_cache),
        ("conduct", "output", "mlp_out"),
        _cached("blocks.1.hook_mlp_out"),
        _MODEL,
    ),
}
_WEIGHTS = {
    "QueryWeightOfKeys": Hidden(
        "`W_Q` is the weight of the keys.",
        _attention_with(W_Q=lambda self: self.W_K),
        ("project_q", "conduct", "weights"),
        _reads("blocks.0.attn.W_Q"),
        ("attn", "model"),
        cases=("weights",),
    ),
    "OutputWeightTransposed": Hidden(
        "`W_O` is the weight cut into heads without being transposed.",
        _attention_with(W_O=lambda self: self.o.weight.view(self.config.n_heads, -1, self.config.d_model)),
        ("output", "conduct", "weights"),
        _reads("blocks.0.attn.W_O"),
        ("attn", "model"),
        cases=("weights",),
    ),
    "embedding_weight_centred": Hidden(
        "`W_E` is centred, as after processing, though the embedding is not.",
        _overridden_in("embed", **_properties(W_E=lambda self: self.weight - self.weight.mean(-1, keepdim=True))),
        ("embedding", "conduct", "weights"),
        _reads("embed.W_E"),
        ("embed", "model"),
        cases=("weights",),
    ),
    "unembedding_weight_shifted": Hidden(
        "`W_U` has the columns of the tokens before.",
        _overridden_in("unembed", **_properties(W_U=lambda self: self.weight.roll(1, 0).T)),
        ("unembed", "conduct", "weights"),
        _reads("unembed.W_U"),
        ("unembed", "model"),
        cases=("weights",),
    ),
    "mlp_weight_is_a_copy": Hidden(
        "`W_out` is a copy, so that an edit of it has no effect.",
        _overridden_in("blocks.0.mlp", **_properties(W_out=lambda self: self.get_submodule("out").weight.T.clone())),
        ("mlp_out", "conduct", "weights"),
        _edits,
        ("mlp", "model"),
        cases=("weights",),
    ),
}

FAULTS = hidden_faults(__name__, _INPUTS | _GENERATION | _LAYERS | _NAMES | _WEIGHTS, "model")
__getattr__ = by_name(FAULTS)
