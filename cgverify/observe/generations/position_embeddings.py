"""The generation in which the model has one sin/cos table and gives its rows to attention as `position_embeddings`.

Attention and block take `cache`, and a block returns a tensor. Rotated q and k are cast to v's dtype. Scores are
q·kᵀ · D^−½ + mask in float32, promoted by the mask's dtype. Attention runs through transformers' attention interface,
of which only the eager implementation has scores and a pattern.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import CodeGenConfig
from transformers.models.codegen import modeling_codegen

from cgverify.common.records import EAGER, SDPA
from cgverify.observe.fault import calls_a_side
from cgverify.observe.generations.generation import Generation
from cgverify.observe.generations.softmax_input import SoftmaxInput
from cgverify.observe.taps import RecordTap, watch_io
from cgverify.oracle.forward import scaled_then_masked
from cgverify.oracle.rope import rounded_to
from cgverify.oracle.scaled_scores import autocast_scaled_scores, scaled_scores


def _misfits() -> list[str]:
    config = CodeGenConfig(n_positions=4, n_embd=16, n_head=4, rotary_dim=4, n_layer=1, vocab_size=4)
    with torch.device("meta"):
        model = modeling_codegen.CodeGenForCausalLM(config)
    block = model.transformer.h[0]
    needed = {"forward": ("hidden_states", "position_embeddings", "attention_mask", "cache")}
    arguments = {
        f"{type(module).__name__}.forward": inspect.signature(module.forward).parameters
        for module in (block, block.attn)
    }
    return [
        *(
            f"{call} takes no {name}"
            for call, parameters in arguments.items()
            for name in needed["forward"]
            if name not in parameters
        ),
        *(f"CodeGenAttention has no {name}" for name in ("scaling", "mp_num") if not hasattr(block.attn, name)),
        *(f"{name} is missing" for name in ("ALL_ATTENTION_FUNCTIONS",) if not hasattr(modeling_codegen, name)),
        *([] if hasattr(model.transformer, "rotary_emb") else ["CodeGenModel has no rotary_emb"]),
    ]


@calls_a_side
def _rotary_emb(root: Any) -> Any:
    """The module with the table, of a `CodeGenForCausalLM` or of a bridge over one."""
    return getattr(root, "original_model", root).transformer.rotary_emb


def _sin_cos_table(root: Any) -> torch.Tensor:
    table: torch.Tensor = _rotary_emb(root).embed_positions
    return table


def _dropout_rates(component: nn.Module) -> list[tuple[Any, str]]:
    rates = [(part, "p" if isinstance(part, nn.Dropout) else "attention_dropout") for part in component.modules()]
    return [(part, name) for part, name in rates if name in vars(part)]


def _attention_dropout_rates(component: nn.Module) -> list[tuple[Any, str]]:
    return [(part, name) for part, name in _dropout_rates(component) if name == "attention_dropout"]


@calls_a_side
def _arguments(root: nn.Module, inputs: dict[str, Any], cache: Any) -> dict[str, Any]:
    arguments = dict(inputs)
    if "position_ids" in inputs:
        rows = _rotary_emb(root)(inputs["hidden_states"], position_ids=inputs["position_ids"])
        arguments["position_embeddings"] = rows
    if cache is not None:
        arguments |= {"cache": cache, "use_cache": True}
    return arguments


@contextlib.contextmanager
def _attention_taps(attention: Any, record: RecordTap) -> Iterator[None]:
    """Record what a `CodeGenAttention` computes, under the names and in the shapes of the bridge's hooks.

    | tap | where it is seen |
    |---|---|
    | `qkv.hook_out` | the output of `qkv_proj` |
    | `hook_q`, `hook_k`, `hook_v` | the results of the first three `reshape`s after `qkv.split`: q, k, v |
    | `hook_rot_q`, `hook_rot_k` | what the attention interface receives; with a cache, the last keys |
    | `hook_attn_scores` | the input of the eager implementation's softmax |
    | `hook_pattern` | what the attention interface returns second; the eager implementation alone has it |
    | `hook_z` | the input of `out_proj` |
    """
    forward = attention.forward

    @calls_a_side
    def watched_forward(*args: Any, **kwargs: Any) -> Any:
        with _SplitHeads(record), _watched_interface(record):
            return forward(*args, **kwargs)

    def record_z(name: str, z: torch.Tensor) -> None:
        record(name, z.unflatten(-1, (attention.num_attention_heads, -1)))

    def record_ends(name: str, tensor: torch.Tensor) -> None:
        """Record the input under the names of the three projections too, and the output under its second name."""
        inputs = ("hook_in", "qkv.hook_in", "q.hook_in", "k.hook_in", "v.hook_in")
        for each in inputs if name == "hook_in" else ("hook_out", "hook_hidden_states"):
            record(each, tensor)

    attention.forward = watched_forward
    try:
        with (
            watch_io(attention, record_ends, "hook_in", "hook_out"),
            watch_io(attention.qkv_proj, record, None, "qkv.hook_out"),
            watch_io(attention.out_proj, record_z, "hook_z", None),
            watch_io(attention.out_proj, record, None, "o.hook_out"),
        ):
            yield
    finally:
        del attention.forward


@contextlib.contextmanager
def _watched_interface(record: RecordTap) -> Iterator[None]:
    """Record what goes into and comes out of the attention implementation that is called meanwhile."""
    interfaces = modeling_codegen.ALL_ATTENTION_FUNCTIONS
    get_interface = interfaces.get_interface

    @calls_a_side
    def watched_get(implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        interface = get_interface(implementation, default)

        @calls_a_side
        def watched(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            record("hook_rot_q", query.transpose(1, 2))
            record("hook_rot_k", key[:, :, -query.shape[2] :].transpose(1, 2))
            with SoftmaxInput(lambda seen: record("hook_attn_scores", seen)):
                output = interface(module, query, key, *args, **kwargs)
            if output[1] is not None:
                record("hook_pattern", output[1])
            return output

        return watched

    interfaces.get_interface = watched_get
    try:
        yield
    finally:
        del interfaces.get_interface


class _SplitHeads(TorchFunctionMode):
    """Record the three `reshape`s that follow a `split` in three: q, k and v by head, in the order of the calls."""

    def __init__(self, record: RecordTap) -> None:
        super().__init__()
        self._record = record
        self._names: Iterator[str] = iter(())

    @calls_a_side
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.split and len(result) == 3:
            self._names = iter(("hook_q", "hook_k", "hook_v"))
        elif func is torch.Tensor.reshape and (name := next(self._names, None)) is not None:
            self._record(name, result)
        return result


POSITION_EMBEDDINGS = Generation(
    definitions={
        "rope": "x·cos + rotate_every_two(x)·sin, cast to the dtype of v",
        "cache": "the rotated key",
        "scores": "q·kᵀ · head_dim^−½ + mask",
    },
    misfits=_misfits,
    attentions=(EAGER, SDPA),
    kinds_with_pattern=("attn",),
    sin_cos_table=_sin_cos_table,
    shared_modules=lambda root: (_rotary_emb(root),),
    derived_inputs=("position_embeddings",),
    dropout_rates=_dropout_rates,
    attention_dropout_rates=_attention_dropout_rates,
    arguments=_arguments,
    attention_taps=_attention_taps,
    cast_rotated=rounded_to,
    cached_dtype=lambda _, value: value,
    scores=scaled_scores,
    autocast_scores=autocast_scaled_scores,
    sampled_scores=scaled_then_masked,
)
