"""Boot a CodeGen model as a TransformerBridge, by our own function or by TransformerLens's.

The adapter is TransformerLens's with our attention and layer norms, and a block whose hooks all fire.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformer_lens.model_bridge.sources.transformers_driver import TransformersDriver
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter
from transformers import PreTrainedTokenizerBase

from cgverify.bridge.activation import use_pieces
from cgverify.bridge.attention import CodeGenAttentionBridge
from cgverify.bridge.block import CodeGenBlockBridge
from cgverify.bridge.codegen_bridge import CodeGenBridge
from cgverify.bridge.components import (
    FastEmbeddingBridge,
    FastLinearBridge,
    FastMLPBridge,
    FastUnembeddingBridge,
)
from cgverify.bridge.fused_projection import split_qkv_matrix
from cgverify.bridge.huge_pages import move_weights
from cgverify.bridge.layer_norm import LayerNormBridge
from cgverify.bridge.loading import load_model, load_tokenizer, locate, require_codegen
from cgverify.bridge.wrapped_attention import prepare_shared_table

ARCHITECTURE = "CodeGenForCausalLM"


class LeanCodeGenAttentionBridge(CodeGenAttentionBridge):
    """Drops each fused weight as soon as it is split, so that booting never keeps more than one of them twice."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        self.drop_fused()


def adapter_with(attention: type[Any]) -> type[ArchitectureAdapter]:
    """Return TransformerLens's CodeGen adapter with `attention` as the class of its attention bridges."""

    class Adapter(CodeGenArchitectureAdapter):  # type: ignore[misc]
        bridge_class = CodeGenBridge

        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            blocks = self.component_mapping["blocks"]
            parts = blocks.submodules
            self.component_mapping["blocks"] = CodeGenBlockBridge(name=blocks.name, submodules=parts)
            parts["ln1"] = LayerNormBridge(name="ln_1", config=self.cfg)
            self.component_mapping["embed"] = FastEmbeddingBridge(name="transformer.wte")
            self.component_mapping["unembed"] = FastUnembeddingBridge(name="lm_head")
            self.component_mapping["ln_final"] = LayerNormBridge(name="transformer.ln_f", config=self.cfg)
            parts["mlp"] = FastMLPBridge(
                name="mlp", submodules={"in": FastLinearBridge(name="fc_in"), "out": FastLinearBridge(name="fc_out")}
            )
            parts["attn"] = attention(
                name="attn",
                config=self.cfg,
                split_qkv_matrix=split_qkv_matrix,
                submodules={"qkv": LinearBridge(name="qkv_proj"), "o": LinearBridge(name="out_proj")},
            )

        def prepare_model(self, hf_model: Any) -> None:
            """Prepare the model before its modules are wrapped.

            Raises:
                NotCodeGenError: it is not Hugging Face's CodeGen.
            """
            require_codegen(hf_model)
            super().prepare_model(hf_model)
            prepare_shared_table(hf_model)
            use_pieces(hf_model)
            # The weights of q, k and v are moved when they are split.
            move_weights(module for name, module in hf_model.named_modules() if not name.endswith("qkv_proj"))

    Adapter.__name__ = f"{attention.__name__}Adapter"
    return Adapter


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
    """Return a TransformerBridge of a CodeGen checkpoint, in eval mode, with `CodeGenAttentionBridge` in every block.

    Args:
        source: what `--model` takes (a name such as `codegen-nano`, a folder, or a hub id; a name or id may end in
            `@REVISION`), or a `CodeGenForCausalLM` in memory. A model in memory is **changed in place**, since its
            blocks become bridges: pass a copy if you want to compare with it.
        dtype: the dtype to load weights in. A model in memory keeps its own.
        device: the device to put the model on. A model in memory stays where it is.
        tokenizer: is used as it is, except that a copy of one without a padding, start or end token gets it. If None,
            the tokenizer in the source folder or repository is used; if there is none, the bridge takes token ids
            alone.
        keep_fused: keep each fused QKV weight in addition to Q, K and V, which are copies of it. It takes 3·d_model²
            values a layer, and `refresh` splits it again. Without it the bridge needs no more memory than the model.

    Raises:
        OSError: transformers finds no checkpoint of that name.
        ValueError: the checkpoint or model is not CodeGen's, or the tokenizer cannot be loaded or used.
    """
    if isinstance(source, nn.Module):
        model = source
    else:
        found, revision = locate(source)
        model = load_model(found, revision, dtype).to(torch.device(device))
        tokenizer = tokenizer or load_tokenizer(found, revision)
    return bridge_from(model, CodeGenAdapter if keep_fused else LeanCodeGenAdapter, tokenizer=tokenizer)


def bridge_from(
    model: nn.Module, adapter_class: type[ArchitectureAdapter], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> TransformerBridge:
    """Return a bridge of a model in memory, built by an adapter. The model is changed in place.

    Parts of the model may be on the meta device: the device and dtype of the bridge are those of the first weight that
    is not.
    """
    hf_config = cast(Any, model.config)
    weights = list(model.parameters())
    weight = next((each for each in weights if not each.is_meta), weights[0])
    config = build_bridge_config_from_hf(hf_config, ARCHITECTURE, hf_config.name_or_path or "codegen", weight.dtype)
    adapter = adapter_class(config)
    adapter.cfg.device = str(weight.device)
    adapter.prepare_model(model)
    bridge_class = getattr(adapter_class, "bridge_class", TransformerBridge)
    driver = TransformersDriver(model, adapter, tokenizer)
    return cast(TransformerBridge, bridge_class(model, adapter, tokenizer, driver=driver))


_replaced_adapter: type[Any] | None = None
"""The adapter that was registered when `install` replaced it."""


def install() -> None:
    """Make TransformerLens boot CodeGen bridges with our attention in this process. A second call has no effect."""
    global _replaced_adapter
    if _registered_adapter() is not CodeGenAdapter:
        _replaced_adapter = _registered_adapter()
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, CodeGenAdapter)


def uninstall() -> None:
    """Undo `install`: register the adapter that it replaced, unless another one was registered since."""
    if _replaced_adapter is not None and _registered_adapter() is CodeGenAdapter:
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, _replaced_adapter)


def _registered_adapter() -> type[Any]:
    adapter: type[Any] = ArchitectureAdapterFactory._adapters[ARCHITECTURE]
    return adapter
