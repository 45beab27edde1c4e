"""Boot a CodeGen model as a TransformerBridge with our attention: by our own function, or by TransformerLens's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf, configure_tokenizer
from transformer_lens.model_bridge.sources.transformers_driver import TransformersDriver
from transformers import AutoConfig, AutoTokenizer, CodeGenForCausalLM, PreTrainedTokenizerBase

from cgverify.bridge.adapter import CodeGenAdapter, LeanCodeGenAdapter

ARCHITECTURE = "CodeGenForCausalLM"

_replaced_adapter: type[Any] | None = None
"""The adapter that was registered when `install` replaced it."""


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
        source: a folder, a hub id, or a `CodeGenForCausalLM` in memory. A model in memory is **changed in
            place**, since its blocks become bridges: pass a copy if you want to compare with it.
        dtype: the dtype to load weights in. A model in memory keeps its own.
        device: the device to put the model on. A model in memory stays where it is.
        tokenizer: if None, the tokenizer in the source folder or repository is used, if there is one. Token ids need
            no tokenizer.
        keep_fused: keep each fused QKV weight in addition to Q, K and V, which are copies of it. It takes 3·d_model²
            values a layer, and `refresh` splits it again. Without it the bridge needs no more memory than the model.

    Raises:
        OSError: transformers finds no checkpoint of that name.
        ValueError: the checkpoint has another architecture.
    """
    if isinstance(source, nn.Module):
        model = source
    else:
        model_type = AutoConfig.from_pretrained(source).model_type
        if model_type != "codegen":
            raise ValueError(f"{source} is a {model_type} checkpoint, not a CodeGen one.")
        model = CodeGenForCausalLM.from_pretrained(source, dtype=dtype).to(torch.device(device)).eval()
        tokenizer = tokenizer or _tokenizer_of(source)
    return bridge_from(model, CodeGenAdapter if keep_fused else LeanCodeGenAdapter, tokenizer=tokenizer)


def bridge_from(
    model: nn.Module, adapter_class: type[ArchitectureAdapter], *, tokenizer: PreTrainedTokenizerBase | None = None
) -> TransformerBridge:
    """Return a TransformerBridge of a model in memory, built by an adapter. The model is changed in place."""
    hf_config = cast(Any, model.config)
    weight = next(model.parameters())
    config = build_bridge_config_from_hf(hf_config, ARCHITECTURE, hf_config.name_or_path or "codegen", weight.dtype)
    adapter = adapter_class(config)
    adapter.cfg.device = str(weight.device)
    adapter.prepare_model(model)
    if tokenizer is not None:
        tokenizer = configure_tokenizer(tokenizer, adapter.cfg)
    return TransformerBridge(model, adapter, tokenizer, driver=TransformersDriver(model, adapter, tokenizer))


def _tokenizer_of(source: str | Path) -> PreTrainedTokenizerBase | None:
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, KeyError):  # what transformers raises if there is none
        return None


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
