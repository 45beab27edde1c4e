"""The block of CodeGen, with the one hook that TransformerLens's bridge of a parallel block leaves dead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge.generalized_components import ParallelBlockBridge


class CodeGenBlockBridge(ParallelBlockBridge):  # type: ignore[misc]
    """A parallel block in which `hook_mlp_in` (`[batch, seq, d_model]`) fires under `use_hook_mlp_in`.

    TransformerLens has that hook on the residual stream, before the MLP's layer norm. CodeGen's MLP has none of its
    own: it reads ln1, as attention does. So the residual forks before ln1, as it does for attention under its flags,
    and what the hook returns goes through ln1's module once more on its way to the MLP.
    """

    _residual: torch.Tensor | None = None

    def _maybe_wire_capture_hooks(self) -> None:
        wired = self._capture_hooks_wired
        super()._maybe_wire_capture_hooks()
        if not wired:
            self._capture_hook_handles += [
                self.ln1.register_forward_pre_hook(self._keep_residual),
                self.mlp.register_forward_pre_hook(self._fork_for_mlp),
            ]

    def _keep_residual(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if self._read_use_hook_mlp_in():
            self._residual = args[0]

    def _fork_for_mlp(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        residual, self._residual = self._residual, None
        if residual is None:
            return None
        return self.ln1.original_component(self.hook_mlp_in(residual)), *args[1:]

    def _clear_attention_capture(self) -> None:
        super()._clear_attention_capture()
        self._residual = None
