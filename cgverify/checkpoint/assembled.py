"""A whole model, put together from the window's views: the same weights, in the same form, all at once."""

from __future__ import annotations

import copy
import os

import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.checkpoint.sin_cos_table import share_table
from cgverify.checkpoint.window import ModelVariant, Window

SHARE = 0.5
"""Of a machine's memory, what a whole model may take: its taps, and other programs, want some too."""


def assembled(window: Window, config: CodeGenConfig, setting: ModelVariant) -> CodeGenForCausalLM:
    """A `CodeGenForCausalLM` with all its layers, in eval mode.

    Args:
        config: of the checkpoint; the window's own says what the setting makes of it.

    Raises:
        WeightsError: a tensor that cannot be read.
    """
    window.show("embed")
    embedded = window.model(setting)
    model = _skeleton(embedded.config, config.n_layer)
    model.transformer.wte = embedded.transformer.wte
    for layer in range(config.n_layer):
        window.show(layer)
        one_block = window.model(setting)
        model.transformer.h[layer] = one_block.transformer.h[0]
        share_table(model, one_block)
    window.show("ln_final")
    model.transformer.ln_f = window.model(setting).transformer.ln_f
    window.show("unembed")
    model.lm_head = window.model(setting).lm_head
    return model.eval()


def too_large(config: CodeGenConfig, setting: ModelVariant) -> str | None:
    """Why a bridge over the whole model is not booted in a setting; None where it fits.

    A bridge holds each layer's q, k and v beside the fused weight. Memory is counted as the machine has it, not as it
    is free, so that one machine always says the same.
    """
    weights = sum(parameter.numel() for parameter in _skeleton(config, config.n_layer).parameters())
    needed = (weights + 3 * config.n_layer * config.n_embd**2) * setting.dtype.itemsize
    memory = _memory(setting.device)
    if needed <= SHARE * memory:
        return None
    return (
        f"the whole model takes {needed / 1e9:.1f} GB in {str(setting.dtype).removeprefix('torch.')}, and may take "
        f"{SHARE * memory / 1e9:.1f} GB of this machine's {memory / 1e9:.1f}: it was verified through the window alone"
    )


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _skeleton(config: CodeGenConfig, n_layers: int) -> CodeGenForCausalLM:
    config = copy.deepcopy(config)
    config.n_layer = n_layers
    with torch.device("meta"):
        return CodeGenForCausalLM(config)
