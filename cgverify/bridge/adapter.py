"""TransformerLens's adapter of CodeGen, with our attention, a block whose hooks all fire, and exact layer norms."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformer_lens.model_bridge import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import LinearBridge, NormalizationBridge, ParallelBlockBridge
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter

from cgverify.bridge.attention import CodeGenAttentionBridge
from cgverify.bridge.qkv_layout import split_qkv_matrix


class CodeGenBlockBridge(ParallelBlockBridge):  # type: ignore[misc]
    """A parallel block in which `hook_mlp_in` (`[batch, seq, d_model]`) fires under `use_hook_mlp_in`.

    TransformerLens defines that hook on the residual stream, before the MLP's layer norm. CodeGen's MLP has no layer
    norm of its own: it reads ln1, as attention does. So the residual stream is forked before ln1, as attention's flags
    do it, and what the hook returns passes through ln1's module once more before it reaches the MLP.
    """

    _residual: Tensor | None = None

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


class LeanCodeGenAttentionBridge(CodeGenAttentionBridge):
    """Drops each fused weight as soon as it is split, so that booting never keeps more than one of them twice."""

    def set_original_component(self, original_component: nn.Module) -> None:
        super().set_original_component(original_component)
        self.drop_fused()


def adapter_with(attention: type[Any]) -> type[ArchitectureAdapter]:
    """Return TransformerLens's CodeGen adapter with `attention` as the class of its attention bridges.

    Its layer norms return what Hugging Face's module computes, bit for bit, unless a hook edits `hook_scale` or
    `hook_normalized`. TransformerLens's default recomputes them, which differs in the last bit.
    """

    class Adapter(CodeGenArchitectureAdapter):  # type: ignore[misc]
        def __init__(self, cfg: Any) -> None:
            super().__init__(cfg)
            blocks = self.component_mapping["blocks"]
            parts = blocks.submodules
            self.component_mapping["blocks"] = CodeGenBlockBridge(name=blocks.name, submodules=parts)
            layer_norm = partial(NormalizationBridge, config=self.cfg, use_native_layernorm_autograd=True)
            parts["ln1"] = layer_norm(name="ln_1")
            self.component_mapping["ln_final"] = layer_norm(name="transformer.ln_f")
            parts["attn"] = attention(
                name="attn",
                config=self.cfg,
                split_qkv_matrix=split_qkv_matrix,
                submodules={"qkv": LinearBridge(name="qkv_proj"), "o": LinearBridge(name="out_proj")},
            )

    Adapter.__name__ = f"{attention.__name__}Adapter"
    return Adapter


CodeGenAdapter = adapter_with(CodeGenAttentionBridge)
LeanCodeGenAdapter = adapter_with(LeanCodeGenAttentionBridge)
