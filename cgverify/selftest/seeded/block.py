"""Wrong blocks: wrong inputs, wrong sums, and the weights of another layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.models.codegen.modeling_codegen import CodeGenBlock

from cgverify.checkpoint.resolve import resolve
from cgverify.observe.generations import installed
from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import changed, computed, through_bfloat16


def block(
    *,
    attention_input: Callable[[Tensor, Tensor], Tensor] = lambda _, normed: normed,
    mlp_input: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda _, normed, __: normed,
    total: Callable[[Tensor, Tensor, Tensor, Tensor], Any] = lambda residual, _, attended, mlp: (
        attended + mlp + residual
    ),
) -> Implementation:
    """Compute a block by other functions of the residual, the output of ln1, and the outputs of attention and MLP."""

    def forward(module: Any, hidden_states: Tensor, *args: Any, **context: Any) -> Any:
        _, _, *names = inspect.signature(CodeGenBlock.forward).parameters
        context |= zip(names, args, strict=False)
        normed = module.ln_1(hidden_states)
        attended, pattern = module.attn(hidden_states=attention_input(hidden_states, normed), **context)
        mlp = module.mlp(mlp_input(hidden_states, normed, attended))
        summed = total(hidden_states, normed, attended, mlp)
        return (summed, pattern) if "block" in installed().kinds_with_pattern else summed

    return computed(forward, "blocks.0")


def _next_layer(path: str, name: str) -> Implementation:
    """Give a module the weight that a checkpoint has for it in the next layer, under `transformer.h.N`."""

    def change(bridge: Any) -> None:
        weight = bridge.get_submodule(path).original_component.weight
        layer = bridge.blocks[0].attn.original_component.layer_idx + 1
        weight.data = resolve("codegen-nano").read(f"transformer.h.{layer}.{name}.weight", weight.shape).to(weight)

    return changed(change)


_SUMS: Rows = {
    "residual_after_norm": (
        "The block adds the output of ln1 instead of its input.",
        block(total=lambda _, normed, attended, mlp: attended + mlp + normed),
    ),
    "residual_doubled": (
        "The block adds its input twice.",
        block(total=lambda residual, _, attended, mlp: attended + mlp + residual + residual),
    ),
    "residual_missing": (
        "The block does not add its input.",
        block(total=lambda _, __, attended, mlp: attended + mlp),
    ),
    "attention_left_out": (
        "Attention is computed, but its output is not added.",
        block(total=lambda residual, _, __, mlp: mlp + residual),
    ),
    "sum_in_bfloat16": (
        "The three addends are rounded to bfloat16.",
        block(total=lambda residual, _, attended, mlp: sum(map(through_bfloat16, (attended, mlp, residual)))),
    ),
}
_INPUTS: Rows = {
    "mlp_reads_the_residual": (
        "The MLP reads the input of ln1, not its output.",
        block(mlp_input=lambda residual, _, __: residual),
    ),
    "attention_reads_the_residual": (
        "Attention reads the input of ln1, not its output.",
        block(attention_input=lambda residual, _: residual),
    ),
    "mlp_after_attention": (
        "The MLP reads the sum of the output of ln1 and that of attention, as in a sequential block.",
        block(mlp_input=lambda _, normed, attended: normed + attended),
    ),
}
_NORM: Rows = {"norm_of_the_next_layer": ("ln1 has the gain of the next layer.", _next_layer("blocks.0.ln1", "ln_1"))}
_OUTPUT: Rows = {
    "output_of_the_next_layer": (
        "`out_proj` has the weight of the next layer.",
        _next_layer("blocks.0.attn.o", "attn.out_proj"),
    ),
}
_MLP_IN: Rows = {
    "mlp_in_of_the_next_layer": (
        "`fc_in` has the weight of the next layer.",
        _next_layer("blocks.0.mlp.in", "mlp.fc_in"),
    ),
}
_MLP_OUT: Rows = {
    "mlp_out_of_the_next_layer": (
        "`fc_out` has the weight of the next layer.",
        _next_layer("blocks.0.mlp.out", "mlp.fc_out"),
    ),
}

FAULTS = (
    *named_faults(__name__, _SUMS, "block_sum", kinds=("block",)),
    *named_faults(__name__, _INPUTS, "input", kinds=("block",)),
    *named_faults(__name__, _NORM, "layer_norm", kinds=("ln1", "block")),
    *named_faults(__name__, _OUTPUT, "output", kinds=("attn", "attn.o", "block")),
    *named_faults(__name__, _MLP_IN, "mlp_in", kinds=("mlp", "mlp.in", "block")),
    *named_faults(__name__, _MLP_OUT, "mlp_out", kinds=("mlp", "mlp.out", "block")),
)
__getattr__ = by_name(FAULTS)
