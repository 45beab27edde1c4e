"""Seeded faults between the layers of a whole model. In a window of one block they change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cgverify.checkpoint.out_of_view import has_memory


def _in_whole_models(change: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Return a candidate that changes bridges of which every block has memory."""

    def candidate(bridge: Any) -> Any:
        if all(map(has_memory, bridge.blocks)):
            change(bridge)
        return bridge

    candidate.__name__ = change.__name__
    return candidate


@_in_whole_models
def third_layer_as_second(bridge: Any) -> None:
    """Layer 3 has the weights of layer 2."""
    for mine, theirs in zip(bridge.blocks[3].parameters(), bridge.blocks[2].parameters(), strict=True):
        mine.data.copy_(theirs)


@_in_whole_models
def layers_exchanged(bridge: Any) -> None:
    """Layers 1 and 2 run in reverse order."""
    blocks = bridge.original_model.transformer.h
    blocks[1], blocks[2] = blocks[2], blocks[1]


@_in_whole_models
def norm_left_out(bridge: Any) -> None:
    """The unembedding reads the residual stream instead of the output of the last layer norm."""
    kept: list[torch.Tensor] = []
    bridge.ln_final.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    bridge.unembed.register_forward_pre_hook(lambda _, args: (kept.pop(), *args[1:]))


@_in_whole_models
def tied(bridge: Any) -> None:
    """The table of the embedding is the weight of the unembedding."""
    bridge.unembed.original_component.weight = bridge.embed.original_component.weight


@_in_whole_models
def cache_of_another_layer(bridge: Any) -> None:
    """Layer 2 caches its keys and values as layer 4."""
    bridge.blocks[2].attn._layer_idx = 4


@_in_whole_models
def padding_ignored(bridge: Any) -> None:
    """The model's attention mask is dropped."""
    call = bridge.forward
    bridge.forward = lambda *args, attention_mask=None, **kwargs: call(*args, **kwargs)


@_in_whole_models
def rows_share_second_token(bridge: Any) -> None:
    """Rows of a batch with equal first tokens get the second token of the first row."""
    call = bridge.forward

    def forward(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tokens.shape[1] > 1 and len(tokens) > 1:
            tokens = tokens.clone()
            tokens[tokens[:, 0] == tokens[0, 0], 1] = tokens[0, 1].clone()
        return call(tokens, *args, **kwargs)

    bridge.forward = forward


@_in_whole_models
def embedding_not_dropped(bridge: Any) -> None:
    """The embedding is not dropped out."""
    bridge.original_model.transformer.drop.forward = lambda x: x


@_in_whole_models
def generates_one_token_less(bridge: Any) -> None:
    """`generate` returns one token less than it is asked for."""
    generate = bridge.generate
    bridge.generate = lambda *args, **kwargs: generate(*args, **kwargs)[:, :-1]


CALLS: dict[Any, str] = {
    padding_ignored: "row with padding",
    rows_share_second_token: "last row of a batch",
    embedding_not_dropped: "not dropped out",
    generates_one_token_less: "generate returns 17 tokens",
}
"""Faults that a prompt and our own loop do not show, and a part of the message."""


FAULTS: dict[Any, tuple[set[str], set[str]]] = {
    third_layer_as_second: ({"project_q", "mlp_in", "layer_norm", "output"}, {"blocks.3"}),
    layers_exchanged: ({"project_q", "mlp_in", "layer_norm"}, {"blocks.1", "blocks.2"}),
    norm_left_out: ({"input"}, {"unembed"}),
    tied: ({"unembed"}, {"unembed"}),
    cache_of_another_layer: ({"cache"}, {"blocks.2", "blocks.4"}),
}
"""Stages that must fail, and the only components in which a stage may fail."""
