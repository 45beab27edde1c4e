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
    bridge.generate = lambda *args, max_new_tokens=10, **kwargs: generate(
        *args, max_new_tokens=max(max_new_tokens - 1, 1), **kwargs
    )


def _generating(name: str, **keywords: Any) -> Callable[[Any], Any]:
    """Return a candidate whose `generate` is called with other keywords."""

    def change(bridge: Any) -> None:
        generate = bridge.generate
        bridge.generate = lambda *args, **kwargs: generate(*args, **kwargs | keywords)

    change.__name__ = name
    return _in_whole_models(change)


generation_ignores_padding = _generating("generation_ignores_padding", attention_mask=None)
generation_samples = _generating("generation_samples", do_sample=True)
generation_never_samples = _generating("generation_never_samples", do_sample=False)
generation_ignores_top_k = _generating("generation_ignores_top_k", top_k=None)


@_in_whole_models
def generation_takes_the_worst(bridge: Any) -> None:
    """The last token that `generate` returns has the least logit."""
    generate = bridge.generate

    def worst(*args: Any, **kwargs: Any) -> Any:
        output = generate(*args, **kwargs)
        if kwargs.get("output_logits"):
            output.sequences[:, -1] = output.logits[-1].argmin(-1)
        return output

    bridge.generate = worst


@_in_whole_models
def stops_a_layer_late(bridge: Any) -> None:
    """`stop_at_layer` runs one layer more."""
    call = bridge.forward

    def forward(*args: Any, stop_at_layer: int | None = None, **kwargs: Any) -> Any:
        later = None if stop_at_layer is None else stop_at_layer % len(bridge.blocks) + 1
        return call(*args, stop_at_layer=later, **kwargs)

    bridge.forward = forward


def _caching(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Any], Any]:
    """Return a candidate whose `run_with_cache` returns another cache."""

    def seed(bridge: Any) -> None:
        run_with_cache = bridge.run_with_cache

        def run(*args: Any, **kwargs: Any) -> Any:
            returned, cache = run_with_cache(*args, **kwargs)
            change(cache.cache_dict)
            return returned, cache

        bridge.run_with_cache = run

    seed.__name__ = name
    return _in_whole_models(seed)


names_exchanged = _caching(
    "names_exchanged", lambda kept: kept.update({"blocks.1.hook_mlp_out": kept["blocks.1.hook_attn_out"]})
)
name_lacking = _caching("name_lacking", lambda kept: kept.pop("blocks.1.attn.hook_z"))


CALLS: dict[Any, str] = {
    padding_ignored: "row with padding",
    rows_share_second_token: "last row of a batch",
    embedding_not_dropped: "not dropped out",
    generates_one_token_less: "generate returns 17 tokens",
    generation_ignores_padding: "generate has other logits for token 1 of the row with padding on the left",
    generation_samples: "generate draws random numbers",
    generation_never_samples: "generate chooses the greatest logits at temperature 1024",
    generation_ignores_top_k: "generate does not choose the best of top_k=1",
    generation_takes_the_worst: "as number 8 of the first row, and the greatest logit is that of",
    stops_a_layer_late: "stop_at_layer=2 does not return what enters block 2",
    names_exchanged: "run_with_cache keeps another tensor than the hook is shown as blocks.1.hook_mlp_out",
    name_lacking: "run_with_cache keeps no blocks.1.attn.hook_z",
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
