"""The attention of CodeGen, recomputed step by step so that every tensor on the way can be read and patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from cgverify.bridge.mask import additive_mask
from cgverify.bridge.rotary import rotate, sin_cos

Split = Callable[[nn.Module], tuple[nn.Linear, nn.Linear, nn.Linear]]


class CodeGenAttentionBridge(JointQKVAttentionBridge):  # type: ignore[misc]
    """A drop-in for TransformerLens's bridge of Hugging Face's `CodeGenAttention`.

    The computation, with batch B, sequence S, heads H, head size D, keys K (cached ones included), d_model = H·D:

    | step | hook | seen as | dtype |
    |---|---|---|---|
    | input | `hook_in` | `[B, S, d_model]` | model's |
    | projections | `hook_q`, `hook_k`, `hook_v` | `[B, S, H, D]` | model's |
    | rotation | `hook_rot_q`, `hook_rot_k` | `[B, S, H, D]` | promoted with the sin/cos table's |
    | (q·kᵀ + mask) / √D | `hook_attn_scores` | `[B, H, S, K]` | float32, or the mask's if wider |
    | softmax, dropout | `hook_pattern` | `[B, H, S, K]` | model's |
    | pattern · v | `hook_z` | `[B, S, H, D]` | model's |
    | output projection, dropout | `hook_out` | `[B, S, d_model]` | model's |

    What a hook returns is what the next step uses. With `use_attn_result` the output is summed from
    `hook_result` (`[B, S, H, d_model]`); with `use_split_qkv_input` or `use_attn_in` the input forks before ln1
    into `hook_q_input`, `hook_k_input`, `hook_v_input` or `hook_attn_in` (`[B, S, H, d_model]`).

    Q, K and V come from the three Linears that `split_qkv_matrix` returned, never from the fused weight. The
    tensors keep the memory layout that they have in Hugging Face, which decides the kernel of each product and so
    the last bit; mask and scale work in place on scores that nobody has seen yet.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        split_qkv_matrix: Split | None = None,
        submodules: dict[str, GeneralizedComponent] | None = None,
        qkv_conversion_rule: BaseTensorConversion | None = None,
        attn_conversion_rule: BaseTensorConversion | None = None,
        pattern_conversion_rule: BaseTensorConversion | None = None,
    ) -> None:
        """See the class.

        Args:
            name: where the attention stands in its block, `"attn"`.
            config: needs `n_heads` and `d_head`.
            split_qkv_matrix: from a `CodeGenAttention` to its Q, K and V Linears.
            submodules: the bridges of `qkv` and `o`.
            qkv_conversion_rule: how hooks see q, k and v; by default as `[B, S, H, D]`.
            attn_conversion_rule: how hooks see the attention's input and output.
            pattern_conversion_rule: how `hook_pattern` sees the pattern.

        Raises:
            ValueError: no `split_qkv_matrix`.
        """
        if split_qkv_matrix is None:
            raise ValueError(
                "CodeGenAttentionBridge needs split_qkv_matrix: CodeGen's fused weight has a layout of its own. "
                "Pass cgverify.bridge.split_qkv_matrix."
            )
        super().__init__(
            name,
            config,
            split_qkv_matrix=split_qkv_matrix,
            submodules=submodules,
            qkv_conversion_rule=qkv_conversion_rule,
            attn_conversion_rule=attn_conversion_rule,
            pattern_conversion_rule=pattern_conversion_rule,
        )
        self._given_qkv_conversion = qkv_conversion_rule
        for hook in ("hook_rot_q", "hook_rot_k"):
            if not hasattr(self, hook):  # the base makes them only where the config says "rotary"
                setattr(self, hook, type(self.hook_pattern)())

    def set_original_component(self, original_component: nn.Module) -> None:
        """Wrap a `CodeGenAttention`: split its fused weight, and wire `out_proj` to `o`.

        Raises:
            ValueError: heads that do not fill the partitions, or a sin/cos table that is not `rotary_dim` wide.
        """
        super().set_original_component(original_component)
        if hasattr(self, "o"):
            self.o.set_original_component(cast(nn.Module, original_component.out_proj))
        turning = self._rotary_dim()
        width = cast(torch.Tensor, original_component.embed_positions).shape[-1]
        if width != turning:
            raise ValueError(f"embed_positions has {width} columns where rotary_dim wants {turning}.")

    def setup_hook_compatibility(self) -> None:
        """Let TransformerLens set the shapes that hooks see, then put back the rule that was given for q, k and v."""
        super().setup_hook_compatibility()
        if self._given_qkv_conversion is not None:
            for projection in (self.q, self.k, self.v):
                projection.hook_out.hook_conversion = self._given_qkv_conversion

    def get_random_inputs(
        self,
        batch_size: int = 2,
        seq_len: int = 8,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        """Inputs for this component and for Hugging Face's alike.

        Returns:
            `hidden_states` `[batch, seq, d_model]`, standard normal; `position_ids` `[batch, seq]`, 0, 1, 2, …;
            `attention_mask` `[batch, 1, seq, seq]`, 0 where a query may attend and the dtype's lowest finite value
            elsewhere. Device and dtype default to CPU and float32.
        """
        device = device or torch.device("cpu")
        dtype = dtype or torch.float32
        config = cast(Any, self.config)
        d_model = int(getattr(config, "d_model", 0) or config.n_heads * config.d_head)
        mask = additive_mask(None, batch=batch_size, queries=seq_len, keys=seq_len, dtype=dtype, device=device)
        return {
            "hidden_states": torch.randn(batch_size, seq_len, d_model, device=device, dtype=dtype),
            "position_ids": torch.arange(seq_len, device=device).expand(batch_size, -1),
            "attention_mask": mask.expand(batch_size, -1, -1, -1),
        }

    def forward(
        self,
        hidden_states: torch.Tensor,
        layer_past: Any = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        *,
        past_key_values: Any = None,
        cache_position: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend. Arguments stand in the order of Hugging Face's.

        Args:
            hidden_states: `[batch, seq, d_model]`.
            layer_past: a `transformers` cache, extended in place; `past_key_values` is another name for it.
            attention_mask: see `cgverify.bridge.mask`; None is causal.
            position_ids: integers `[batch or 1, seq]`, rows of `embed_positions`.
            use_cache, output_attentions, cache_position: accepted and without effect, as in Hugging Face.

        Returns:
            The output `[batch, seq, d_model]` and the pattern `[batch, heads, seq, keys]` that was used.

        Raises:
            ValueError: no `position_ids`, or a mask of the wrong shape.
        """
        if position_ids is None:
            raise ValueError(
                "CodeGenAttentionBridge needs position_ids, integers of shape [batch or 1, seq]: without them there "
                "is no rotation."
            )
        cache = layer_past if layer_past is not None else past_key_values
        hidden_states = self.hook_in(hidden_states)
        batch, queries = hidden_states.shape[:2]
        cached = cache.get_seq_length(self._layer_idx) if cache is not None else 0
        mask = additive_mask(
            attention_mask,
            batch=batch,
            queries=queries,
            keys=cached + queries,
            dtype=hidden_states.dtype,
            device=hidden_states.device,
        )
        query, key, value = self._project(hidden_states)
        query, key = self._rotate(query, key, position_ids)
        query = self.hook_rot_q(query.transpose(1, 2))
        key = self.hook_rot_k(key.transpose(1, 2))
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = self._extend_cache(cache, key.to(hidden_states.dtype), value)
        scores = self.hook_attn_scores(self._scores(query, key, mask))
        pattern = self.hook_pattern(self._pattern_of(scores, value.dtype))
        output = self._output(self._mix(pattern, value))
        output = self.hook_out(self.hook_hidden_states(output))
        return output, pattern

    def _rotary_dim(self) -> int:
        """How many dimensions of a head turn; all of them where the module's `rotary_dim` is None."""
        original = cast(nn.Module, self.original_component)
        rotary_dim = cast(int | None, original.rotary_dim)
        return cast(int, original.head_dim) if rotary_dim is None else rotary_dim

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v, each `[batch, seq, heads, head_dim]`."""
        if self._is_split_qkv_fork_active():
            forked: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._split_forward_qkv(hidden_states)
            return forked
        heads = cast(Any, self.config).n_heads
        query, key, value = (
            projection(hidden_states).unflatten(-1, (heads, -1)) for projection in (self.q, self.k, self.v)
        )
        return query, key, value

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated q and k, `[batch, seq, heads, head_dim]`."""
        table = cast(torch.Tensor, cast(nn.Module, self.original_component).embed_positions)
        sin, cos = sin_cos(table.to(position_ids.device), position_ids)
        return rotate(query, sin, cos), rotate(key, sin, cos)

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all positions so far, `[batch, heads, keys, head_dim]`, in the model's dtype."""
        extended: tuple[torch.Tensor, torch.Tensor] = cache.update(key, value, self._layer_idx)
        return extended

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(q·kᵀ + mask) / √head_dim, in float32 whatever the model's dtype, or in the mask's if that is wider."""
        scores = torch.matmul(query.to(torch.float32), key.to(torch.float32).transpose(-1, -2))
        promoted = torch.promote_types(scores.dtype, mask.dtype)
        scores = scores.add_(mask) if promoted == scores.dtype else scores + mask
        return scores.div_(cast(float, cast(nn.Module, self.original_component).scale_attn))

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Softmax over the keys, cast to the values' dtype, with the module's dropout."""
        pattern: torch.Tensor = self._apply_attn_dropout(self._masked_softmax(scores).to(dtype))
        return pattern

    def _mix(self, pattern: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """z, the values mixed by the pattern, heads side by side: `[batch, seq, d_model]`."""
        return torch.matmul(pattern, value).transpose(1, 2).flatten(-2)

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        """The output projection (per head under `use_attn_result`) and the residual dropout."""
        config = cast(Any, self.config)
        if getattr(config, "use_attn_result", False):
            per_head = self.o.hook_in(z).unflatten(-1, (config.n_heads, -1))
            projected = self._compute_per_head_result(per_head, config.n_heads, per_head.shape[-1])
        else:
            projected = self.o(z)
        return cast(torch.Tensor, cast(Any, self.original_component).resid_dropout(projected))
