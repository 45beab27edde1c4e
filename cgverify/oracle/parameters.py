"""The weights and buffers that the oracle starts from: a reference block's own, as stored, under the bridge's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cgverify.oracle.fused_qkv import projection_bias, projection_weight
from cgverify.oracle.shortcuts import Shortcuts


class Parameters:
    """Weights of one block, or of what stands before or after the blocks, of a `CodeGenForCausalLM`.

    Names are the bridge's: `embed`, `ln1`, `attn.q`, `attn.o`, `attn.table`, `mlp.in`, `ln_final`, `unembed`.
    """

    def __init__(
        self,
        model: Any,
        read_table: Callable[[Any], torch.Tensor],
        shortcuts: Shortcuts,
        table_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            read_table: return the model's sin/cos table `[positions, rotary_dim]`, sines before cosines.
            shortcuts: that products may take.
            table_dtype: what the sin/cos table is cast to; None leaves it as it is stored.
        """
        self.shortcuts = shortcuts
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
        """The same, with the sin/cos table in the weights' dtype, as `model.to(dtype)` leaves it."""
        return Parameters(self._model, self._read_table, self.shortcuts, self.tensor("attn.o").dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """The weight `[out, in]` of a linear, the gain of a norm, the table of `attn.table` or `embed`."""
        if name in ("attn.q", "attn.k", "attn.v"):
            if name not in self._projections:
                attention = self._module("attn")
                fused = attention.qkv_proj.weight.detach()
                self._projections[name] = projection_weight(fused, name[-1], attention.num_attention_heads)
            return self._projections[name]
        if name == "attn.table":
            table = self._read_table(self._model)
            return table if self._table_dtype is None else table.to(self._table_dtype)
        weight: torch.Tensor = self._module(name).weight.detach()
        return weight

    def bias(self, name: str) -> torch.Tensor | None:
        """The bias of a linear or a norm; None where it has none."""
        if name in ("attn.q", "attn.k", "attn.v"):  # CodeGen's have none, until layer norms are folded into them
            attention = self._module("attn")
            fused = attention.qkv_proj.bias
            heads = attention.num_attention_heads
            return None if fused is None else projection_bias(fused.detach(), name[-1], heads)
        bias: torch.Tensor | None = self._module(name).bias
        return None if bias is None else bias.detach()

    def gain_and_bias(self, norm: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The gain and the bias of a layer norm."""
        return self.tensor(norm), self.required_bias(norm)

    def required_bias(self, name: str) -> torch.Tensor:
        bias = self.bias(name)
        if bias is None:
            raise ValueError(f"{name} has no bias, which CodeGen's layer norms have.")
        return bias

    def _module(self, name: str) -> Any:
        transformer = self._model.transformer
        return {
            "embed": lambda: transformer.wte,
            "ln1": lambda: transformer.h[0].ln_1,
            "attn": lambda: transformer.h[0].attn,
            "attn.o": lambda: transformer.h[0].attn.out_proj,
            "mlp.in": lambda: transformer.h[0].mlp.fc_in,
            "mlp.out": lambda: transformer.h[0].mlp.fc_out,
            "ln_final": lambda: transformer.ln_f,
            "unembed": lambda: self._model.lm_head,
        }[name]()
