"""Seeded faults between the layers of a whole model: in a window of one block none of them changes anything."""

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
    """Layers 1 and 2 run in the other order."""
    if _whole(bridge):
        blocks = bridge.original_model.transformer.h
        blocks[1], blocks[2] = blocks[2], blocks[1]
    return bridge


def norm_left_out(bridge: Any) -> Any:
    """The unembedding is given the residual stream instead of what the last layer norm made of it."""
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
    """Layer 2 keeps its keys and values where layer 4 will."""
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
"""Stages that must be among the failed ones, and the components in which alone something may fail."""
