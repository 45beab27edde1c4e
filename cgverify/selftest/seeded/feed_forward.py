"""Wrong MLPs, through functions of a booted bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cgverify.selftest.entry import fault
from cgverify.selftest.seeded.precision import TF32Operands, through


def _mlp(bridge: Any) -> Any:
    return bridge.blocks[0].mlp


def _linear(bridge: Any, name: str) -> Any:
    return getattr(_mlp(bridge), name).original_component


class Activation(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def activated_by(bridge: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Let a bridge's MLP have another activation."""
    _mlp(bridge).original_component.act = Activation(function)
    return bridge


def erf_gelu(bridge: Any) -> Any:
    """GELU with the error function, where CodeGen's has tanh."""
    return activated_by(bridge, nn.GELU())


def quick_gelu(bridge: Any) -> Any:
    """x·sigmoid(1.702x)."""
    return activated_by(bridge, lambda x: x * torch.sigmoid(1.702 * x))


def relu(bridge: Any) -> Any:
    """ReLU."""
    return activated_by(bridge, nn.ReLU())


def silu(bridge: Any) -> Any:
    """x·sigmoid(x)."""
    return activated_by(bridge, nn.SiLU())


def activation_missing(bridge: Any) -> Any:
    """No activation at all."""
    return activated_by(bridge, nn.Identity())


def gelu_constant_off(bridge: Any) -> Any:
    """0.0447 where it must be 0.044715."""
    return activated_by(bridge, lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.0447 * x**3))))


def gelu_in_bfloat16(bridge: Any) -> Any:
    """The activation's input is rounded to bfloat16."""
    activation = _mlp(bridge).original_component.act
    return activated_by(bridge, lambda x: activation(through(x, torch.bfloat16)))


def gelu_clipped(bridge: Any) -> Any:
    """The activation stops at 5."""
    activation = _mlp(bridge).original_component.act
    return activated_by(bridge, lambda x: activation(x).clamp(max=5))


def mlp_in_bias_missing(bridge: Any) -> Any:
    """`fc_in` has no bias."""
    _linear(bridge, "in").bias = None
    return bridge


def mlp_out_bias_missing(bridge: Any) -> Any:
    """`fc_out` has no bias."""
    _linear(bridge, "out").bias = None
    return bridge


def mlp_out_bias_twice(bridge: Any) -> Any:
    """`fc_out` adds its bias twice."""
    bias = _linear(bridge, "out").bias
    bias.data = bias.data * 2
    return bridge


def mlp_in_row_missing(bridge: Any) -> Any:
    """The last row of `fc_in` is zero."""
    _linear(bridge, "in").weight.data[-1] = 0
    return bridge


def mlp_in_column_dropped(bridge: Any) -> Any:
    """One input of `fc_in` does not count."""
    _linear(bridge, "in").weight.data[:, 7] = 0
    return bridge


def mlp_in_weights_in_bfloat16(bridge: Any) -> Any:
    """`fc_in`'s weight has been through bfloat16."""
    weight = _linear(bridge, "in").weight
    weight.data = through(weight.data, torch.bfloat16)
    return bridge


def mlp_out_in_tf32(bridge: Any) -> Any:
    """`fc_out` has TF32 operands."""
    out = _mlp(bridge).out
    out._modules["_original_component"] = TF32Operands(out.original_component)
    return bridge


def mlp_out_scaled(bridge: Any) -> Any:
    """`fc_out`'s weight is 1.001 times too large."""
    weight = _linear(bridge, "out").weight
    weight.data = weight.data * 1.001
    return bridge


_IN, _OUT, _ACT = ("mlp", "mlp.in", "block"), ("mlp", "mlp.out", "block"), ("mlp", "block")

FAULTS = (
    *(
        fault(candidate, "activation", kinds=_ACT)
        for candidate in (*(erf_gelu, quick_gelu, relu, silu, activation_missing, gelu_constant_off, gelu_in_bfloat16),)
    ),
    fault(gelu_clipped, "activation", kinds=_ACT, case="stress"),
    *(
        fault(candidate, "mlp_in", kinds=_IN)
        for candidate in (
            *(mlp_in_bias_missing, mlp_in_row_missing, mlp_in_column_dropped, mlp_in_weights_in_bfloat16),
        )
    ),
    *(
        fault(candidate, "mlp_out", kinds=_OUT)
        for candidate in (mlp_out_bias_missing, mlp_out_bias_twice, mlp_out_in_tf32, mlp_out_scaled)
    ),
)
