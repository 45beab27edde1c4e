"""Export a bridge's weights in Hugging Face's layout: the inverse of booting."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import CodeGenForCausalLM

from cgverify.bridge.fused_projection import projections_of, require_linear
from cgverify.bridge.qkv_layout import join_weight

_ENDS = {"embed": "transformer.wte", "ln_final": "transformer.ln_f", "unembed": "lm_head"}
_IN_BLOCK = {"ln1": "ln_1", "attn.o": "attn.out_proj", "mlp.in": "mlp.fc_in", "mlp.out": "mlp.fc_out"}
_JOINED = {"attn.q.weight", "attn.k.weight", "attn.v.weight"}


def hugging_face_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a bridge's `state_dict()` with the names and shapes of a `CodeGenForCausalLM`, with fused QKV weights.

    Raises:
        ValueError: CodeGen has no such weight, as after TransformerLens's compatibility mode.
    """
    exported: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        component, _, leaf = name.rpartition(".")
        if component in _ENDS:
            exported[f"{_ENDS[component]}.{leaf}"] = tensor
            continue
        _, layer, inside = name.split(".", 2)
        block, component = f"transformer.h.{layer}", inside.rpartition(".")[0]
        if component in _IN_BLOCK:
            exported[f"{block}.{_IN_BLOCK[component]}.{leaf}"] = tensor
        elif inside == "attn.q.weight":
            joined = (weights[f"blocks.{layer}.attn.{which}.weight"] for which in "qkv")
            exported[f"{block}.attn.qkv_proj.weight"] = join_weight(*joined)
        elif inside not in _JOINED | {"attn.qkv.weight"}:
            raise ValueError(_not_codegen(name))
    return exported


def save_pretrained(bridge: TransformerBridge, folder: str | Path) -> None:
    """Write a bridge's weights, configs and tokenizer as a folder that `from_pretrained` loads to the same logits.

    Q, K and V are written as they are now, edits included. The fused weight that they were split from is not used.

    Raises:
        ValueError: `enable_compatibility_mode` has processed the weights, which no longer fit a CodeGen model, or a
            projection is more than a plain Linear.
    """
    require_linear(projections_of(bridge), "Saving")
    config: Any = copy.deepcopy(bridge.original_model.config)
    with torch.device("meta"):
        model: Any = CodeGenForCausalLM(config)
    weights = hugging_face_weights(bridge.state_dict())
    wanted = model.state_dict()
    for name in wanted.keys() ^ weights.keys():
        raise ValueError(_not_codegen(name))
    model.load_state_dict(weights, assign=True)
    if (generation := getattr(bridge.original_model, "generation_config", None)) is not None:
        model.generation_config = copy.deepcopy(generation)
    model.save_pretrained(folder)
    if bridge.tokenizer is not None:
        bridge.tokenizer.save_pretrained(folder)


def _not_codegen(name: str) -> str:
    return (
        f"These weights no longer fit a CodeGen model ({name}): export the bridge before enable_compatibility_mode "
        "folds and centres them, or boot a new one."
    )
