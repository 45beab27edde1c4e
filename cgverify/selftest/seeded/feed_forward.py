"""Wrong MLPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cgverify.selftest.candidates import Implementation, Rows, by_name, named_faults
from cgverify.selftest.seeded.precision import tf32_operands
from cgverify.selftest.seeded.seeding import activated, changed, computed, edited, reweighted, through_bfloat16

_FC_IN, _FC_OUT = "blocks.0.mlp.in", "blocks.0.mlp.out"


def _without_bias(path: str) -> Implementation:
    return changed(lambda bridge: setattr(bridge.get_submodule(path).original_component, "bias", None))


def _double_bias(bridge: Any) -> None:
    bias = bridge.get_submodule(_FC_OUT).original_component.bias
    bias.data = bias.data * 2


_ACTIVATIONS: Rows = {
    "erf_gelu": ("GELU with the error function; CodeGen's has tanh.", lambda _, x: nn.functional.gelu(x)),
    "quick_gelu": ("The activation is x·sigmoid(1.702x).", lambda _, x: x * torch.sigmoid(1.702 * x)),
    "relu": ("The activation is ReLU.", lambda _, x: x.relu()),
    "silu": ("The activation is x·sigmoid(x).", lambda _, x: nn.functional.silu(x)),
    "activation_missing": ("There is no activation.", lambda _, x: x),
    "gelu_constant_off": (
        "The constant of GELU is 0.0447 instead of 0.044715.",
        lambda _, x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.0447 * x**3))),
    ),
    "gelu_in_bfloat16": (
        "The input of the activation is rounded to bfloat16.",
        lambda activation, x: activation(through_bfloat16(x)),
    ),
}
_CLIPPED: Rows = {
    "gelu_clipped": ("Activations above 5 become 5.", lambda activation, x: activation(x).clamp(max=5)),
}
_IN: Rows = {
    "mlp_in_bias_missing": ("`fc_in` has no bias.", _without_bias(_FC_IN)),
    "mlp_in_row_missing": ("The last row of `fc_in` is 0.", reweighted(_FC_IN, edited(lambda w: w[-1].zero_()))),
    "mlp_in_column_dropped": ("`fc_in` ignores one input.", reweighted(_FC_IN, edited(lambda w: w[:, 7].zero_()))),
    "mlp_in_weights_in_bfloat16": (
        "The weight of `fc_in` is rounded to bfloat16.",
        reweighted(_FC_IN, through_bfloat16),
    ),
}
_OUT: Rows = {
    "mlp_out_bias_missing": ("`fc_out` has no bias.", _without_bias(_FC_OUT)),
    "mlp_out_bias_twice": ("`fc_out` adds its bias twice.", changed(_double_bias)),
    "mlp_out_in_tf32": ("The operands of `fc_out` are rounded to TF32.", computed(tf32_operands, _FC_OUT)),
    "mlp_out_scaled": (
        "The weight of `fc_out` is multiplied by 1.001.",
        reweighted(_FC_OUT, lambda weight: weight * 1.001),
    ),
}
_MLP = ("mlp", "block")

FAULTS = (
    *named_faults(__name__, _ACTIVATIONS, "activation", seed=activated, kinds=_MLP),
    *named_faults(__name__, _CLIPPED, "activation", seed=activated, kinds=_MLP, case="stress"),
    *named_faults(__name__, _IN, "mlp_in", kinds=("mlp", "mlp.in", "block")),
    *named_faults(__name__, _OUT, "mlp_out", kinds=("mlp", "mlp.out", "block")),
)
__getattr__ = by_name(FAULTS)
