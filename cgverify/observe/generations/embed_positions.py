"""The generation in which each attention has its own sin/cos table, the buffer `embed_positions`.

Attention and block take `position_ids` and `layer_past`, and return a tuple. Scores are (q·kᵀ + mask) / √D in float32,
promoted by the mask's dtype. The float32 table promotes q and k; the key is cast back before it is cached.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgverify.observe.fault import calls_a_side
from cgverify.observe.generations.generation import Generation
from cgverify.observe.generations.softmax_input import SoftmaxInput
from cgverify.observe.taps import RecordTap, watch_io
from cgverify.oracle.forward import masked_then_scaled
from cgverify.oracle.scores import autocast_scores, scores


def _misfits() -> list[str]:
    with torch.device("meta"):
        attention = CodeGenAttention(CodeGenConfig(n_positions=4, n_embd=16, n_head=4, rotary_dim=4), layer_idx=0)
    arguments = inspect.signature(attention.forward).parameters
    attributes = ("embed_positions", "_split_heads", "_attn")
    return [
        *(f"CodeGenAttention has no {name}" for name in attributes if not hasattr(attention, name)),
        *(f"its forward takes no {name}" for name in ("position_ids", "layer_past") if name not in arguments),
    ]


def _sin_cos_table(model: Any) -> torch.Tensor:
    table: torch.Tensor = model.transformer.h[0].attn.embed_positions
    return table


def _dropout_rates(component: nn.Module) -> list[tuple[Any, str]]:
    return [(module, "p") for module in component.modules() if isinstance(module, nn.Dropout)]


def _attention_dropout_rates(component: nn.Module) -> list[tuple[Any, str]]:
    own = {id(module) for name, module in component.named_modules() if "attn" in name.rpartition(".")[2]}
    return [(module, rate) for module, rate in _dropout_rates(component) if id(module) in own]


def _arguments(_: nn.Module, inputs: dict[str, Any], cache: Any) -> dict[str, Any]:
    return inputs if cache is None else {**inputs, "layer_past": cache, "use_cache": True}


@contextlib.contextmanager
def _attention_taps(attention: Any, record: RecordTap) -> Iterator[None]:
    """Record what a `CodeGenAttention` computes, under the names and in the shapes of the bridge's hooks.

    | tap | where it is seen |
    |---|---|
    | `qkv.hook_out` | the output of `qkv_proj` |
    | `hook_q`, `hook_k`, `hook_v` | what `_split_heads` returns, in the order of its calls: q, k, v |
    | `hook_rot_q`, `hook_rot_k` | what `_attn` receives; with a cache, the last keys, already cast |
    | `hook_attn_scores` | the input of `_attn`'s softmax |
    | `hook_pattern` | what `_attn` returns second |
    | `hook_z` | the input of `out_proj` |
    """
    split_heads, attn = attention._split_heads, attention._attn
    projections: Iterator[str] = iter(())

    @calls_a_side
    def watched_split(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal projections
        heads: torch.Tensor = split_heads(*args, **kwargs)
        name = next(projections, None)
        if name is None:
            projections = iter(("hook_k", "hook_v"))
            name = "hook_q"
        record(name, heads)
        return heads

    @calls_a_side
    def watched_attn(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        record("hook_rot_q", query.transpose(1, 2))
        record("hook_rot_k", key[:, :, -query.shape[2] :].transpose(1, 2))
        with SoftmaxInput(lambda seen: record("hook_attn_scores", seen)):
            output = attn(query, key, *args, **kwargs)
        record("hook_pattern", output[1])
        return output

    def record_z(name: str, z: torch.Tensor) -> None:
        record(name, z.unflatten(-1, (attention.num_attention_heads, -1)))

    def record_ends(name: str, tensor: torch.Tensor) -> None:
        """Record the input under the names of the three projections too, and the output under its second name."""
        inputs = ("hook_in", "qkv.hook_in", "q.hook_in", "k.hook_in", "v.hook_in")
        for each in inputs if name == "hook_in" else ("hook_out", "hook_hidden_states"):
            record(each, tensor)

    attention._split_heads, attention._attn = watched_split, watched_attn
    try:
        with (
            watch_io(attention, record_ends, "hook_in", "hook_out"),
            watch_io(attention.qkv_proj, record, None, "qkv.hook_out"),
            watch_io(attention.out_proj, record_z, "hook_z", None),
            watch_io(attention.out_proj, record, None, "o.hook_out"),
        ):
            yield
    finally:
        del attention._split_heads, attention._attn


EMBED_POSITIONS = Generation(
    definitions={
        "rope": "x·cos + rotate_every_two(x)·sin, in the dtype that x and the table promote to",
        "cache": "the rotated key, cast to the dtype of the hidden states",
        "scores": "(q·kᵀ + mask) / √head_dim",
    },
    misfits=_misfits,
    attentions=("eager",),
    kinds_with_pattern=("attn", "block"),
    sin_cos_table=_sin_cos_table,
    shared_modules=lambda _: (),
    derived_inputs=(),
    dropout_rates=_dropout_rates,
    attention_dropout_rates=_attention_dropout_rates,
    arguments=_arguments,
    attention_taps=_attention_taps,
    cast_rotated=lambda rotated, _: rotated,
    cached_dtype=lambda hidden, _: hidden,
    scores=scores,
    autocast_scores=autocast_scores,
    sampled_scores=masked_then_scaled,
)
