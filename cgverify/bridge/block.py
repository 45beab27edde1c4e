"""The bridge of a CodeGen block: all its hooks fire, and it costs next to nothing if no hook is attached."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import nn
from transformer_lens.model_bridge.generalized_components import ParallelBlockBridge

from cgverify.bridge.components import DirectCall
from cgverify.bridge.fast_path import has_own_forward


class CodeGenBlockBridge(DirectCall, ParallelBlockBridge):  # type: ignore[misc]
    """A parallel block in which `hook_mlp_in` (`[batch, seq, d_model]`) fires under `use_hook_mlp_in`.

    TransformerLens defines that hook on the residual stream, before the MLP's layer norm. CodeGen's MLP has no layer
    norm of its own: it reads ln1, as attention does. So the residual stream is forked before ln1, as attention's flags
    do it, and what the hook returns passes through ln1's module once more before it reaches the MLP.

    The torch hooks that fork the residual stream are there only while a flag asks for them.
    """

    _residual: Any = None
    _start_at_layer_idx: int | None = None
    _stop_at_layer_idx: int | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block. See `BlockBridge.forward` for layers to start or stop at."""
        wrapped = self.__dict__["_modules"].get("_original_component")
        if (
            wrapped is not None
            and self._start_at_layer_idx is None
            and self._stop_at_layer_idx is None
            and args
            and kwargs  # without keywords, TransformerLens returns a tuple
            and _takes_any_keyword(type(wrapped).forward)
            and not has_own_forward(wrapped)
            and self._is_quiet()
            and not self._forks()
        ):
            return wrapped(*args, **kwargs)
        return super().forward(*args, **kwargs)

    def _forks(self) -> bool:
        """Return whether a flag asks for inputs of q, k, v or the MLP of their own."""
        attention = self.__dict__["_modules"].get("attn")
        return self._read_use_hook_mlp_in() or attention is None or bool(attention._is_split_qkv_fork_active())

    def _maybe_wire_capture_hooks(self) -> None:
        if not self._forks():
            self._teardown_capture_hooks()
            return
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


@cache
def _takes_any_keyword(forward: Any) -> bool:
    parameters = inspect.signature(forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
