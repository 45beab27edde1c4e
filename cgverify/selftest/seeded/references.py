"""Changed references: what is on the model must be refused, and what is in the library's code must be suspect."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.codegen import modeling_codegen
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgverify.selftest.candidates import (
    ATTENTION,
    Implementation,
    ReferenceFault,
    ReferenceVariant,
    named_candidates,
)
from cgverify.selftest.seeded.seeding import edited
from cgverify.selftest.self_test import LAYER

Change = Callable[[Any], object]
"""A change of a whole `CodeGenForCausalLM`."""


def _on_model(change: Change) -> Implementation:
    """Return a context in which a model is changed. It is not restored, since each fault has a model of its own."""

    @contextlib.contextmanager
    def changed(model: Any) -> Iterator[None]:
        change(model)
        yield

    return changed


def _in_library(owner: Any, name: str, change: Callable[[Any], Callable[..., Any]]) -> Implementation:
    """Return a context in which a function of the library is replaced by `change(function)`, for every model."""

    @contextlib.contextmanager
    def changed(_: Any) -> Iterator[None]:
        function = getattr(owner, name)
        setattr(owner, name, wraps(function)(change(function)))
        try:
            yield
        finally:
            setattr(owner, name, function)

    return changed


def _block(model: Any) -> Any:
    return model.transformer.h[LAYER]


def _has_one_table(model: Any) -> bool:
    return hasattr(model.transformer, "rotary_emb")


def _set(path: str, **values: Any) -> Change:
    """Return a change that sets attributes of a module in a block."""

    def change(model: Any) -> None:
        for name, value in values.items():
            setattr(_block(model).get_submodule(path), name, value)

    return change


def _scaled_twice(model: Any) -> None:
    attention = _block(model).attn
    name = "scaling" if hasattr(attention, "scaling") else "scale_attn"
    setattr(attention, name, 2 * getattr(attention, name))


def _eight_partitions(model: Any) -> None:
    attention = _block(model).attn
    if hasattr(attention, "mp_num"):
        attention.mp_num = 8
    else:
        attention.qkv_proj.forward = _in_eight_parts(attention.qkv_proj.forward)


def _in_eight_parts(fused: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a projection whose features are in the order of eight partitions, to be read in that of four."""

    def projected(x: Tensor) -> Tensor:
        parts = fused(x).unflatten(-1, (8, 3, -1)).unbind(-2)
        return torch.stack([part.flatten(-2).unflatten(-1, (4, -1)) for part in parts], dim=-2).flatten(-3)

    return projected


def _drops_attention(model: Any) -> None:
    attention = _block(model).attn
    if hasattr(attention, "attention_dropout"):
        attention.attention_dropout = 0.1
    else:
        attention.attn_dropout.p = 0.1


def _with_weight(path: str, edit: Callable[[Tensor], object]) -> Change:
    """Return a change that edits a tensor of a block."""

    def change(model: Any) -> None:
        tensor = _block(model).get_parameter(path)
        tensor.data = edited(edit)(tensor.data)

    return change


def _with_table(change: Callable[[Tensor], Tensor]) -> Change:
    """Return a change of the sin/cos table: the model's, or that of every block."""

    def change_model(model: Any) -> None:
        owners = (
            [model.transformer.rotary_emb] if _has_one_table(model) else [each.attn for each in model.transformer.h]
        )
        for owner in owners:
            owner.embed_positions = change(owner.embed_positions)

    return change_model


def _swap_blocks(model: Any) -> None:
    blocks = model.transformer.h
    blocks[LAYER], blocks[LAYER + 1] = blocks[LAYER + 1], blocks[LAYER]


def _swap_mlps(model: Any) -> None:
    here, there = _block(model), model.transformer.h[LAYER + 1]
    here.mlp, there.mlp = there.mlp, here.mlp


def _skip_mlp(model: Any) -> None:
    mlp = _block(model).mlp
    mlp.forward = torch.zeros_like


class _OtherNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


_REFUSED: dict[str, tuple[str, str, Change]] = {
    "other_activation": ("GELU has the error function.", "mlp.act is a GELU", _set("mlp", act=nn.GELU())),
    "other_activation_function": (
        "The activation's forward is replaced by SiLU.",
        "mlp.act has another method forward",
        _set("mlp.act", forward=functional.silu),
    ),
    "other_epsilon": ("ln_1 has another epsilon.", "ln_1 has eps", _set("ln_1", eps=1e-3)),
    "other_norm": (
        "ln_1 subtracts no mean.",
        "ln_1 is a _OtherNorm",
        lambda model: setattr(_block(model).ln_1, "__class__", _OtherNorm),
    ),
    "other_partitions": ("The fused weight is read in eight partitions.", "attn", _eight_partitions),
    "other_scale": ("The scores are scaled by a factor of two.", "attn has scal", _scaled_twice),
    "other_rotary_dim": ("Half as many dimensions are rotated.", "attn has rotary_dim 8", _set("attn", rotary_dim=8)),
    "dropout_of_attention": ("Attention drops a tenth in training.", "0.1 instead of 0.0", _drops_attention),
    "dropout_left_on": (
        "`eval()` does not turn off the dropout of the MLP.",
        "mlp.dropout has another method train",
        _set("mlp.dropout", p=0.1, train=lambda _: None),
    ),
    "forward_hook": (
        "A hook of torch scales the output projection by 1.001.",
        "out_proj has a torch forward hook",
        lambda model: _block(model).attn.out_proj.register_forward_hook(lambda _, __, output: output * 1.001),
    ),
    "forward_pre_hook": (
        "A hook of torch rounds the input of the MLP to bfloat16.",
        "mlp has a torch forward pre-hook",
        lambda model: _block(model).mlp.register_forward_pre_hook(lambda _, args: (args[0].bfloat16().to(args[0]),)),
    ),
    "backward_hook": (
        "A hook of torch doubles the gradient in the input of attention.",
        "attn has a torch backward hook",
        lambda model: _block(model).attn.register_full_backward_hook(lambda _, into, __: tuple(g * 2 for g in into)),
    ),
    "hook_on_gradient": (
        "A hook of torch doubles the gradient in a weight.",
        "fc_in has a torch hook on the gradient of its weight",
        lambda model: _block(model).mlp.fc_in.weight.register_hook(lambda gradient: gradient * 2),
    ),
    "table_in_16_bits": (
        "The sin/cos table is float16.",
        "embed_positions of the reference",
        _with_table(lambda table: table.to(torch.float16)),
    ),
    "table_shifted": (
        "Each position has the angles of the one before.",
        "embed_positions of the reference",
        _with_table(lambda table: table.roll(1, 0)),
    ),
    "weight_edited": (
        "One weight of `fc_in` is larger.",
        "mlp.fc_in.weight of the reference",
        _with_weight("mlp.fc_in.weight", lambda weight: weight[3, 5].add_(0.25)),
    ),
    "fused_weight_edited": (
        "One row of the fused weight is 0.",
        "attn.qkv_proj.weight of the reference",
        _with_weight("attn.qkv_proj.weight", lambda weight: weight[7].zero_()),
    ),
    "gain_edited": (
        "The gains of ln_1 are twice as large.",
        "ln_1.weight of the reference",
        _with_weight("ln_1.weight", lambda gain: gain.mul_(2)),
    ),
    "weight_used_twice": (
        "A block has the output projection of the block before.",
        "attn.out_proj.weight of the reference",
        lambda model: setattr(
            _block(model).attn.out_proj, "weight", model.transformer.h[LAYER - 1].attn.out_proj.weight
        ),
    ),
    "unembedding_like_embedding": (
        "The unembedding has the weight of the embedding, though the config does not tie them.",
        "lm_head.weight of the reference",
        lambda model: setattr(model.lm_head, "weight", model.transformer.wte.weight),
    ),
    "blocks_swapped": ("Two blocks are exchanged.", "attn has layer_idx", _swap_blocks),
    "mlps_swapped": ("The MLPs of two blocks are exchanged.", "mlp.fc_in.weight of the reference", _swap_mlps),
    "mlp_skipped": ("The MLP returns 0.", "mlp has another method forward", _skip_mlp),
    "whole_forward_replaced": (
        "The forward of the whole model is replaced.",
        "the model itself has another method forward",
        lambda model: setattr(model, "forward", lambda *args, **kwargs: type(model).forward(model, *args, **kwargs)[0]),
    ),
    "module_added": (
        "A block has one more module.",
        "has an additional adapter",
        lambda model: _block(model).add_module("adapter", nn.Identity()),
    ),
    "config_edited": (
        "The config says another epsilon than the modules have.",
        "ln_1 has eps",
        lambda model: setattr(model.config, "layer_norm_epsilon", 1e-6),
    ),
}


def _without_mask(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda attention, *args, **kwargs: forward(attention, *args, **{**kwargs, "attention_mask": None})


def _eight_partitions_in_class(forward: Callable[..., Any]) -> Callable[..., Any]:
    def partitioned(attention: Any, *args: Any, **kwargs: Any) -> Any:
        projection = attention.qkv_proj
        projection.forward = _in_eight_parts(projection.forward)
        try:
            return forward(attention, *args, **kwargs)
        finally:
            del projection.forward

    return partitioned


def _shifted_values(forward: Callable[..., Any]) -> Callable[..., Any]:
    def shifted(attention: Any, *args: Any, **kwargs: Any) -> Any:
        output, *rest = forward(attention, *args, **kwargs)
        return output + output.abs().amax() / 8, *rest

    return shifted


def _not_finite(forward: Callable[..., Any]) -> Callable[..., Any]:
    def infinite(attention: Any, *args: Any, **kwargs: Any) -> Any:
        output, *rest = forward(attention, *args, **kwargs)
        return output / 0, *rest

    return infinite


def _with_angles(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Any], Callable[..., Any]]:
    return lambda rotate: lambda x, sin, cos: rotate(x, *change(sin, cos))


_SUSPECT: dict[str, tuple[str, tuple[str, ...], Implementation]] = {
    "partitions_of_the_class": (
        "The class's forward reads the fused weight in eight partitions.",
        ("project_q", "project_k", "project_v"),
        _in_library(CodeGenAttention, "forward", _eight_partitions_in_class),
    ),
    "mask_dropped": (
        "The class's forward drops the mask.",
        ("scores",),
        _in_library(CodeGenAttention, "forward", _without_mask),
    ),
    "output_shifted": (
        "The class's forward adds a constant to the output.",
        ("output",),
        _in_library(CodeGenAttention, "forward", _shifted_values),
    ),
    "output_not_finite": (
        "The class's forward returns infinities.",
        ("output", "returned", "block_sum"),
        _in_library(CodeGenAttention, "forward", _not_finite),
    ),
    "rotation_reversed": (
        "The library's rotation has the opposite direction.",
        ("rope",),
        _in_library(modeling_codegen, "apply_rotary_pos_emb", _with_angles(lambda sin, cos: (-sin, cos))),
    ),
    "angles_exchanged": (
        "The library's rotation exchanges sine and cosine.",
        ("rope",),
        _in_library(modeling_codegen, "apply_rotary_pos_emb", _with_angles(lambda sin, cos: (cos, sin))),
    ),
    "halves_rotated": (
        "The library pairs each dimension with one half a head away.",
        ("rope",),
        _in_library(
            modeling_codegen,
            "rotate_every_two",
            lambda _: lambda x: torch.cat([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], dim=-1),
        ),
    ),
}
_HELD: dict[str, tuple[str, Implementation]] = {
    "stock_reference": ("The reference is as `from_pretrained` returns it.", _on_model(lambda _: None)),
    "reference_in_training": ("The reference is in training mode.", _on_model(lambda model: model.train())),
    "reference_eager": (
        "The reference was set to eager attention.",
        _on_model(lambda model: model.set_attn_implementation("eager")),
    ),
    "reference_used": (
        "The reference has returned hidden states and patterns, for which transformers may have left hooks on it.",
        _on_model(
            lambda model: model(
                torch.arange(4, device=model.device)[None], output_attentions=True, output_hidden_states=True
            )
        ),
    ),
}


def _faults() -> Iterator[ReferenceFault]:
    for name, (sentence, named, change) in _REFUSED.items():
        (candidate,) = named_candidates(__name__, {name: (sentence, _on_model(change))})
        yield ReferenceFault(candidate, ATTENTION, named)
    for name, (sentence, stages, context) in _SUSPECT.items():
        (candidate,) = named_candidates(__name__, {name: (sentence, context)})
        yield ReferenceFault(candidate, ATTENTION, "of Hugging Face's side", frozenset(stages))


FAULTS = tuple(_faults())
VARIANTS = tuple(ReferenceVariant(each, ("attn", "block", "mlp")) for each in named_candidates(__name__, _HELD))
