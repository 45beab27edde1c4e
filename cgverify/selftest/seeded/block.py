"""Wrong blocks: what is fed where, what is summed, and whose weights they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cgverify.checkpoint.resolve import resolve
from cgverify.selftest.entry import fault
from cgverify.selftest.seeded.precision import through

Forward = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def _block(bridge: Any) -> Any:
    return bridge.blocks[0].original_component


def _computed(bridge: Any, forward: Forward) -> Any:
    """Let a block be computed by a function of its module, its input and the context of its attention."""
    block = _block(bridge)
    block.forward = lambda hidden_states, **context: forward(block, hidden_states, **context)
    return bridge


def residual_after_norm(bridge: Any) -> Any:
    """The block adds what came out of ln1."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        return output + block.mlp(normed) + normed, pattern

    return _computed(bridge, forward)


def residual_doubled(bridge: Any) -> Any:
    """The block adds its input twice."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        return output + block.mlp(normed) + hidden_states + hidden_states, pattern

    return _computed(bridge, forward)


def residual_missing(bridge: Any) -> Any:
    """The block does not add its input."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        return output + block.mlp(normed), pattern

    return _computed(bridge, forward)


def attention_left_out(bridge: Any) -> Any:
    """Attention runs, and its output is not added."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        _, pattern = block.attn(hidden_states=normed, **context)
        return block.mlp(normed) + hidden_states, pattern

    return _computed(bridge, forward)


def mlp_reads_the_residual(bridge: Any) -> Any:
    """The MLP is fed what came in, not what came out of ln1."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        output, pattern = block.attn(hidden_states=block.ln_1(hidden_states), **context)
        return output + block.mlp(hidden_states) + hidden_states, pattern

    return _computed(bridge, forward)


def attention_reads_the_residual(bridge: Any) -> Any:
    """Attention is fed what came in, not what came out of ln1."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        output, pattern = block.attn(hidden_states=hidden_states, **context)
        return output + block.mlp(block.ln_1(hidden_states)) + hidden_states, pattern

    return _computed(bridge, forward)


def mlp_after_attention(bridge: Any) -> Any:
    """The MLP is fed the norm plus attention's output, as in a sequential block."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        return output + block.mlp(normed + output) + hidden_states, pattern

    return _computed(bridge, forward)


def sum_in_bfloat16(bridge: Any) -> Any:
    """The three addends are rounded to bfloat16."""

    def forward(block: Any, hidden_states: torch.Tensor, **context: Any) -> Any:
        normed = block.ln_1(hidden_states)
        output, pattern = block.attn(hidden_states=normed, **context)
        addends = (output, block.mlp(normed), hidden_states)
        return sum(through(addend, torch.bfloat16) for addend in addends), pattern

    return _computed(bridge, forward)


def _weights_of_the_next_layer(bridge: Any, *names: str) -> Any:
    block = _block(bridge)
    layer = block.attn.original_component.layer_idx + 1
    source = resolve("codegen-nano")
    for name in names:
        owner = _module(bridge, name)
        tensor = source.read(f"transformer.h.{layer}.{name}.weight", owner.weight.shape)
        owner.weight.data = tensor.to(owner.weight)
    return bridge


def _module(bridge: Any, name: str) -> Any:
    block = bridge.blocks[0]
    return {
        "ln_1": block.ln1,
        "attn.out_proj": block.attn.o,
        "mlp.fc_in": getattr(block.mlp, "in"),
        "mlp.fc_out": block.mlp.out,
    }[name].original_component


def norm_of_the_next_layer(bridge: Any) -> Any:
    """ln1 has the gain of the layer above."""
    return _weights_of_the_next_layer(bridge, "ln_1")


def output_of_the_next_layer(bridge: Any) -> Any:
    """`out_proj` is that of the layer above."""
    return _weights_of_the_next_layer(bridge, "attn.out_proj")


def mlp_in_of_the_next_layer(bridge: Any) -> Any:
    """`fc_in` is that of the layer above."""
    return _weights_of_the_next_layer(bridge, "mlp.fc_in")


def mlp_out_of_the_next_layer(bridge: Any) -> Any:
    """`fc_out` is that of the layer above."""
    return _weights_of_the_next_layer(bridge, "mlp.fc_out")


_SUM = ("block",)

FAULTS = (
    *(
        fault(candidate, "block_sum", kinds=_SUM)
        for candidate in (
            *(residual_after_norm, residual_doubled, residual_missing, attention_left_out, sum_in_bfloat16),
        )
    ),
    fault(mlp_reads_the_residual, "input", kinds=_SUM),
    fault(attention_reads_the_residual, "input", kinds=_SUM),
    fault(mlp_after_attention, "input", kinds=_SUM),
    fault(norm_of_the_next_layer, "layer_norm", kinds=("ln1", "block")),
    fault(output_of_the_next_layer, "output", kinds=("attn", "attn.o", "block")),
    fault(mlp_in_of_the_next_layer, "mlp_in", kinds=("mlp", "mlp.in", "block")),
    fault(mlp_out_of_the_next_layer, "mlp_out", kinds=("mlp", "mlp.out", "block")),
)
