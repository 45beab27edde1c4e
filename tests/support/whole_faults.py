"""Seeded faults between the layers of a whole model. In a window of one block none of them changes anything."""

from __future__ import annotations

from typing import Any

import torch


def _whole(bridge: Any) -> bool:
    return len(bridge.blocks) > 1


def _copy(source: Any, target: Any) -> None:
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.copy_(theirs)


def third_layer_as_second(bridge: Any) -> Any:
    """Layer 3 has the weights of layer 2."""
    if _whole(bridge):
        _copy(bridge.blocks[2], bridge.blocks[3])
    return bridge


def layers_exchanged(bridge: Any) -> Any:
    """Layers 1 and 2 run in reverse order."""
    if _whole(bridge):
        blocks = bridge.original_model.transformer.h
        blocks[1], blocks[2] = blocks[2], blocks[1]
    return bridge


def norm_left_out(bridge: Any) -> Any:
    """The unembedding takes the residual stream instead of the output of the last layer norm."""
    if _whole(bridge):
        kept: list[torch.Tensor] = []
        bridge.ln_final.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        bridge.unembed.register_forward_pre_hook(lambda _, args: (kept.pop(), *args[1:]))
    return bridge


def tied(bridge: Any) -> Any:
    """The embedding's table is the unembedding's weight."""
    if _whole(bridge):
        bridge.unembed.original_component.weight = bridge.embed.original_component.weight
    return bridge


def cache_of_another_layer(bridge: Any) -> Any:
    """Layer 2 caches its keys and values in the place of layer 4's."""
    if _whole(bridge):
        bridge.blocks[2].attn._layer_idx = 4
    return bridge


FAULTS: dict[Any, tuple[set[str], set[str]]] = {
    third_layer_as_second: ({"project_q", "mlp_in", "layer_norm", "output"}, {"blocks.3"}),
    layers_exchanged: ({"project_q", "mlp_in", "layer_norm"}, {"blocks.1", "blocks.2"}),
    norm_left_out: ({"input"}, {"unembed"}),
    tied: ({"unembed"}, {"unembed"}),
    cache_of_another_layer: ({"cache"}, {"blocks.2", "blocks.4"}),
}
"""Stages that must fail, and the only components in which anything may fail."""
