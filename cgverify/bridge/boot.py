"""Wrap a CodeGen model in a TransformerBridge whose attention is ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
from transformer_lens.model_bridge.generalized_components import LinearBridge, NormalizationBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf, configure_tokenizer
from transformer_lens.model_bridge.sources.transformers_driver import TransformersDriver
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter
from transformers import AutoConfig, AutoTokenizer, CodeGenForCausalLM, PreTrainedTokenizerBase

from cgverify.bridge.attention import CodeGenAttentionBridge
from cgverify.bridge.block import CodeGenBlockBridge
from cgverify.bridge.fused_qkv import split_qkv_matrix

ARCHITECTURE = "CodeGenForCausalLM"


def adapter_with(attention: type[Any]) -> type[ArchitectureAdapter]:
    """TransformerLens's CodeGen adapter, with `attention` as the class of its attention bridges.

    Its layer norms return what Hugging Face's own module computes, bit for bit, as long as no hook edits `hook_scale`
    or `hook_normalized`; TransformerLens's default recomputes them, which is a unit in the last place off.
    """

    class Adapter(CodeGenArchitectureAdapter):  # type: ignore[misc]
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            blocks = self.component_mapping["blocks"]
            block = blocks.submodules
            self.component_mapping["blocks"] = CodeGenBlockBridge(name=blocks.name, submodules=block)
            block["ln1"] = _layer_norm("ln_1", self.cfg)
            self.component_mapping["ln_final"] = _layer_norm("transformer.ln_f", self.cfg)
            block["attn"] = attention(
                name="attn",
                config=self.cfg,
                split_qkv_matrix=split_qkv_matrix,
                submodules={"qkv": LinearBridge(name="qkv_proj"), "o": LinearBridge(name="out_proj")},
            )

    Adapter.__name__ = f"{attention.__name__}Adapter"
    return Adapter


def _layer_norm(name: str, config: Any) -> NormalizationBridge:
    return NormalizationBridge(name=name, config=config, use_native_layernorm_autograd=True)


class LeanCodeGenAttentionBridge(CodeGenAttentionBridge):
    """Drops each fused weight as soon as it is split, so that a boot never holds more than one twice."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        self.drop_fused()


CodeGenAdapter = adapter_with(CodeGenAttentionBridge)
LeanCodeGenAdapter = adapter_with(LeanCodeGenAttentionBridge)


def boot(
    source: str | Path | nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    tokenizer: PreTrainedTokenizerBase | None = None,
    keep_fused: bool = True,
) -> TransformerBridge:
    """A TransformerBridge over a CodeGen checkpoint, in eval mode, with `CodeGenAttentionBridge` in every block.

    Args:
        source: a folder, a hub id, or a `CodeGenForCausalLM` in memory. A model in memory is **changed in
            place**, since its blocks become bridges: pass a copy if you want to compare with it.
        dtype: to load the weights in; a model in memory keeps its own.
        device: to put the model on; a model in memory stays where it is.
        tokenizer: if None, the one that stands beside the weights is used, if any. Token ids need none.
        keep_fused: keep each fused QKV weight beside Q, K and V, which are copies of it. It takes 3·d_model² values a
            layer, and is what `refresh` splits anew; without it the bridge needs no more memory than the model.

    Raises:
        OSError: nothing of that name, from transformers.
        ValueError: a checkpoint of another architecture.
    """
    if isinstance(source, nn.Module):
        model = source
    else:
        model = _load(str(source), dtype, device)
        tokenizer = tokenizer or _tokenizer_beside(str(source))
    return bridge_from(model, CodeGenAdapter if keep_fused else LeanCodeGenAdapter, tokenizer=tokenizer)


def bridge_from(
    model: nn.Module, adapter_class: type[ArchitectureAdapter], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> TransformerBridge:
    """A TransformerBridge over a model in memory, built by an adapter. The model is changed in place."""
    hf_config = cast(Any, model.config)
    weight = next(model.parameters())
    config = build_bridge_config_from_hf(hf_config, ARCHITECTURE, hf_config.name_or_path or "codegen", weight.dtype)
    adapter = adapter_class(config)
    adapter.cfg.device = str(weight.device)
    adapter.prepare_model(model)
    if tokenizer is not None:
        tokenizer = configure_tokenizer(tokenizer, adapter.cfg)
    return TransformerBridge(model, adapter, tokenizer, driver=TransformersDriver(model, adapter, tokenizer))


def _load(source: str, dtype: torch.dtype, device: torch.device | str) -> CodeGenForCausalLM:
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type != "codegen":
        raise ValueError(f"{source} is a {model_type} checkpoint, not a CodeGen one.")
    model = CodeGenForCausalLM.from_pretrained(source, dtype=dtype)
    return cast(CodeGenForCausalLM, model.to(torch.device(device)).eval())


def _tokenizer_beside(source: str) -> PreTrainedTokenizerBase | None:
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, KeyError):  # how transformers says that there is none
        return None
