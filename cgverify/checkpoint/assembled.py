"""A whole model, assembled from the window's views: the same weights in the same form, all at once."""

from __future__ import annotations

import contextlib

import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.bridge.codegen_format import skeleton
from cgverify.checkpoint.sin_cos_table import share_table
from cgverify.checkpoint.window import ModelVariant, Window
from cgverify.common import memory

SHARE = 0.5
"""Share of the memory that a whole model may take: its taps and other programs need some too."""


def assembled(window: Window, config: CodeGenConfig, variant: ModelVariant) -> CodeGenForCausalLM:
    """Return a `CodeGenForCausalLM` with all its layers, in eval mode.

    Args:
        config: the checkpoint's.

    Raises:
        WeightsError: a tensor cannot be read.
    """
    window.show("embed")
    embedded = window.model(variant)
    model = skeleton(embedded.config, config.n_layer)
    model.transformer.wte = embedded.transformer.wte
    for layer in range(config.n_layer):
        window.show(layer)
        one_block = window.model(variant)
        model.transformer.h[layer] = one_block.transformer.h[0]
        share_table(one_block, model)
    window.show("ln_final")
    model.transformer.ln_f = window.model(variant).transformer.ln_f
    window.show("unembed")
    model.lm_head = window.model(variant).lm_head
    return model.eval()


def too_large(config: CodeGenConfig, variant: ModelVariant) -> str | None:
    """Return why a bridge of the whole model is not booted in a variant; None if it fits.

    A bridge has q, k and v of each layer as well as the fused weight. The total memory decides, not the free memory, so
    that the answer is always the same on one machine.
    """
    weights = sum(parameter.numel() for parameter in skeleton(config, config.n_layer).parameters())
    needed = (weights + 3 * config.n_layer * config.n_embd**2) * variant.dtype.itemsize
    total = _total_memory(variant.device)
    if needed <= SHARE * total:
        return None
    return (
        f"the whole model takes {needed / 1e9:.1f} GB in {str(variant.dtype).removeprefix('torch.')}, and may take "
        f"{SHARE * total / 1e9:.1f} GB of this machine's {total / 1e9:.1f}: it was verified through the window alone"
    )


def _total_memory(device: torch.device) -> int:
    if device.type != "cpu":
        with contextlib.suppress(RuntimeError):  # not every backend reports its memory; some share the machine's
            return int(torch.accelerator.get_memory_info(device)[1])
    return memory.total()
