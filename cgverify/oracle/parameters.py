"""The weights and buffers that the oracle starts from: those of a reference block as stored, by the bridge's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cgverify.oracle.fused_qkv import projection
from cgverify.oracle.shortcuts import Shortcuts

_MODULES = {
    "embed": "transformer.wte",
    "ln1": "transformer.h.0.ln_1",
    "attn.o": "transformer.h.0.attn.out_proj",
    "mlp.in": "transformer.h.0.mlp.fc_in",
    "mlp.out": "transformer.h.0.mlp.fc_out",
    "ln_final": "transformer.ln_f",
    "unembed": "lm_head",
}
_FUSED = "transformer.h.0.attn.qkv_proj"
_PROJECTIONS = ("attn.q", "attn.k", "attn.v")


class Parameters:
    """The weights of a one-block `CodeGenForCausalLM` on the CPU.

    Names are the bridge's: `embed`, `ln1`, `attn.q`, `attn.o`, `attn.table`, `mlp.in`, `ln_final`, `unembed`.
    """

    def __init__(
        self,
        model: Any,
        read_table: Callable[[Any], torch.Tensor],
        shortcuts: Shortcuts,
        device: str,
        table_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            read_table: return the model's sin/cos table `[positions, rotary_dim]`, sines before cosines.
            shortcuts: those that products may take.
            device: the type of the device that both sides run on, which decides what autocast does.
            table_dtype: what the sin/cos table is cast to; None leaves it as it is stored.
        """
        self.shortcuts = shortcuts
        self.device = device
        self._model = model
        self._read_table = read_table
        self._table_dtype = table_dtype
        self._projections: dict[str, torch.Tensor] = {}

    @property
    def eps(self) -> float:
        """The layer norms' ε."""
        return float(self._model.config.layer_norm_epsilon)

    @property
    def n_heads(self) -> int:
        return int(self._model.config.n_head)

    def with_cast_table(self) -> Parameters:
        """Return these parameters with the sin/cos table in the weights' dtype, as `model.to(dtype)` leaves it."""
        return Parameters(self._model, self._read_table, self.shortcuts, self.device, self.tensor("attn.o").dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """Return the weight `[out, in]` of a linear, the gain of a norm, or the table of `attn.table` or `embed`."""
        if name == "attn.table":
            table = self._read_table(self._model)
            return table if self._table_dtype is None else table.to(self._table_dtype)
        if name not in _PROJECTIONS:
            weight: torch.Tensor = self._model.get_submodule(_MODULES[name]).weight.detach()
            return weight
        if name not in self._projections:
            fused = self._model.get_submodule(_FUSED).weight.detach()
            self._projections[name] = projection(fused, name[-1], self.n_heads)
        return self._projections[name]

    def bias(self, name: str) -> torch.Tensor | None:
        """Return the bias of a linear or a norm; None if it has none."""
        fused = name in _PROJECTIONS  # has a bias only after layer norms were folded into it
        bias: torch.Tensor | None = self._model.get_submodule(_FUSED if fused else _MODULES[name]).bias
        if bias is None:
            return None
        return projection(bias.detach(), name[-1], self.n_heads) if fused else bias.detach()

    def gain_and_bias(self, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tensor(norm), self.required_bias(norm)

    def required_bias(self, name: str) -> torch.Tensor:
        bias = self.bias(name)
        if bias is None:
            raise ValueError(f"{name} has no bias, which CodeGen's layer norms have.")
        return bias
