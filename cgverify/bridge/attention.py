"""CodeGen's attention, recomputed step by step so that hooks can read and patch every intermediate tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import Cache

from cgverify.bridge.components import DirectCall
from cgverify.bridge.fast_path import allows_out, call_hook_point, call_linear, has_hooks
from cgverify.bridge.fused_projection import keep_whole_projection, project, require_linear
from cgverify.bridge.huge_pages import result_buffer, to_dtype
from cgverify.bridge.joint_projection import make_adjacent
from cgverify.bridge.mask import additive_mask, key_counts
from cgverify.bridge.module_hooks import call_as
from cgverify.bridge.one_token import attend_one_token, steps_of
from cgverify.bridge.rotary import check_position_embeddings, check_positions, rotate_both, sin_cos, twice
from cgverify.bridge.weight_snapshot import FusedWeightSnapshot
from cgverify.bridge.wrapped_attention import PositionEmbeddings, form_of

Split = Callable[[nn.Module], tuple[nn.Module, nn.Module, nn.Module]]
TwoTensors = tuple[Tensor, Tensor]
ThreeTensors = tuple[Tensor, Tensor, Tensor]


class CodeGenAttentionBridge(DirectCall, JointQKVAttentionBridge):  # type: ignore[misc]
    """A drop-in replacement for TransformerLens's bridge of Hugging Face's `CodeGenAttention`.

    The computation, with batch B, sequence S, heads H, head size D, keys K (cached keys included), d_model = H·D:

    | step | hook | shape | dtype |
    |---|---|---|---|
    | input | `hook_in` | `[B, S, d_model]` | model's |
    | projections | `hook_q`, `hook_k`, `hook_v` | `[B, S, H, D]` | model's |
    | rotation | `hook_rot_q`, `hook_rot_k` | `[B, S, H, D]` | promoted with the sin/cos table's, or the model's |
    | q·kᵀ, masked and scaled | `hook_attn_scores` | `[B, H, S, K]` | float32, or the mask's if wider |
    | softmax, dropout | `hook_pattern` | `[B, H, S, K]` | model's |
    | pattern · v | `hook_z` | `[B, S, H, D]` | model's |
    | output projection, dropout | `hook_out` | `[B, S, d_model]` | model's |

    The order of mask and scale, and the dtype after the rotation, are those of the module that is wrapped: see
    `cgverify.bridge.wrapped_attention`.

    The next step uses what a hook returns. With `use_attn_result` the output is the sum of `hook_result`
    (`[B, S, H, d_model]`). With `use_split_qkv_input` or `use_attn_in` the input is forked before ln1 into
    `hook_q_input`, `hook_k_input`, `hook_v_input` or `hook_attn_in` (`[B, S, H, d_model]`). `qkv.hook_in` and
    `qkv.hook_out` (`[B, S, 3·d_model]`, in the fused weight's order) fire if they have hooks.

    Q, K and V are computed with what `split_qkv_matrix` returned: three Linears, never the fused weight, or parts of a
    projection that is more than a Linear. After an edit of the fused weight a forward warns, and `refresh` splits it
    again. Tensors keep the memory layout that they have in Hugging Face, which decides the kernel of each product and
    so the last bit. Mask, scale and softmax work in place on scores that no hook has seen. What a hook has seen is
    never written to.
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
        """Create a bridge that wraps nothing yet.

        Args:
            name: the attention's name in its block, `"attn"`.
            config: needs `n_heads` and `d_head`.
            split_qkv_matrix: returns the Q, K and V Linears of a `CodeGenAttention`.
            submodules: the bridges of `qkv` and `o`.
            qkv_conversion_rule: converts q, k and v for hooks; by default to `[B, S, H, D]`.
            attn_conversion_rule: converts the attention's input and output for hooks.
            pattern_conversion_rule: converts the pattern for `hook_pattern`.

        Raises:
            ValueError: `split_qkv_matrix` is missing.
        """
        if split_qkv_matrix is None:
            raise ValueError(
                "CodeGenAttentionBridge needs split_qkv_matrix, because CodeGen's fused weight has its own layout. "
                "Pass cgverify.bridge.split_qkv_matrix."
            )
        rules = qkv_conversion_rule, attn_conversion_rule, pattern_conversion_rule
        super().__init__(name, config, split_qkv_matrix, submodules, *rules)
        self._given_qkv_conversion = qkv_conversion_rule
        self._fused = FusedWeightSnapshot()
        self._processed = False
        self.register_state_dict_post_hook(keep_whole_projection)
        self.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: module._before_load(state, prefix))
        self.register_load_state_dict_post_hook(lambda module, _: module._after_load())
        for hook in ("hook_rot_q", "hook_rot_k"):
            if not hasattr(self, hook):  # the base class creates them only if the config says "rotary"
                setattr(self, hook, type(self.hook_pattern)())

    def set_original_component(self, original_component: nn.Module) -> None:
        """Wrap a `CodeGenAttention`: split its fused weight, and make `out_proj` the original of `o`.

        Raises:
            ValueError: the heads do not fill the partitions, the sin/cos table is not `rotary_dim` wide, or the module
                has a form that is not known.
        """
        self._form = form_of(original_component)
        super().set_original_component(original_component)
        if hasattr(self, "o"):
            self.o.set_original_component(original_component.out_proj)
        rotary_dim = self.config.d_head if original_component.rotary_dim is None else original_component.rotary_dim
        width = self._table().shape[-1]
        if width != rotary_dim:
            raise ValueError(f"embed_positions has {width} columns, but rotary_dim is {rotary_dim}.")
        self._remember_fused()
        self._join_projections()

    def _join_projections(self) -> None:
        projections = [self._modules[name] for name in "qkv"]
        make_adjacent([getattr(projection, "original_component", projection) for projection in projections])

    def _remember_fused(self) -> None:
        """Take the present fused weight as the one that Q, K and V belong to."""
        self._fused = FusedWeightSnapshot.of(self.original_component)

    def _before_load(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        if not self._fused.is_outdated_by(self, state_dict, prefix):
            self._fused = FusedWeightSnapshot()

    def _after_load(self) -> None:
        if self._fused.owner is None:
            self._remember_fused()

    def _apply(self, fn: Any, recurse: bool = True) -> CodeGenAttentionBridge:
        """Move or cast all weights together, as `to`, `half` and `cuda` do. That is not an edit of the fused weight."""
        edited = self._fused.has_changed
        moved: CodeGenAttentionBridge = super()._apply(fn, recurse)
        if self.original_component is not None:
            self._join_projections()
            if not edited:
                self._remember_fused()
        return moved

    def refresh(self) -> None:
        """Split the fused weight again, after it was edited or replaced. Q, K and V are written in place.

        Raises:
            ValueError: `drop_fused` has dropped the fused weight, or Q, K and V were processed.
        """
        if self._processed:
            raise ValueError(
                "enable_compatibility_mode has processed Q, K and V, which are no longer a split of the fused weight: "
                "edit q, k and v themselves, or boot a new bridge and edit the fused weight before processing."
            )
        if self._fused.owner is not None and self._fused.weight is None:
            raise ValueError("There is no fused weight to split: this bridge was booted with keep_fused=False.")
        split = self.split_qkv_matrix(self.original_component)
        for projection, now in zip((self.q, self.k, self.v), split, strict=True):
            before = projection.original_component
            if type(before) is type(now) is nn.Linear:
                with torch.no_grad():
                    before.weight.copy_(now.weight)
            else:
                projection.set_original_component(now)
        self._join_projections()
        self._remember_fused()

    def set_processed_weights(self, weights: dict[str, Tensor], verbose: bool = False) -> None:
        """Take weights that TransformerLens has processed, layer norms folded in. `refresh` would undo that."""
        require_linear([self.q, self.k, self.v, self.o], "Processing weights")
        super().set_processed_weights(weights, verbose=verbose)
        self._processed = True

    def drop_fused(self) -> None:
        """Free the fused weight. Q, K and V are copies of it, from which `join_weight` can restore it."""
        owner = self._fused.owner
        if owner is not None:
            owner._parameters["weight"] = None
        self._fused = FusedWeightSnapshot(owner)

    def setup_hook_compatibility(self) -> None:
        """Let TransformerLens set the shapes that hooks see, but keep a given `qkv_conversion_rule`."""
        super().setup_hook_compatibility()
        for point in (self.hook_rot_q, self.hook_rot_k):  # they are called with what they show
            point.hook_conversion = None
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
        """Return inputs for this component or Hugging Face's, by default on the CPU and in float32.

        Returns:
            `hidden_states` `[batch, seq, d_model]`, standard normal; `position_ids` `[batch, seq]`, 0, 1, 2, …;
            `attention_mask` `[batch, 1, seq, seq]`, 0 where a query may attend and the dtype's lowest finite value
            elsewhere. A module that takes `position_embeddings` gets those of the positions as well.
        """
        device, dtype = device or torch.device("cpu"), dtype or torch.float32
        d_model = int(getattr(self.config, "d_model", 0) or self.config.n_heads * self.config.d_head)
        hidden_states = torch.randn(batch_size, seq_len, d_model, device=device, dtype=dtype)
        inputs: dict[str, Any] = {
            "hidden_states": hidden_states,
            "position_ids": torch.arange(seq_len, device=device).expand(batch_size, -1),
            "attention_mask": additive_mask(None, hidden_states, heads=1, keys=seq_len).expand(batch_size, -1, -1, -1),
        }
        if self._form.takes_position_embeddings and seq_len <= len(self._table()):
            rows = self._table().to(device)[inputs["position_ids"]]
            inputs["position_embeddings"] = rows.chunk(2, dim=-1)
        return inputs

    def forward(
        self,
        hidden_states: Tensor,
        layer_past: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = False,  # noqa: ARG002  Hugging Face passes it
        output_attentions: bool | None = False,  # noqa: ARG002  the pattern is always returned
        position_embeddings: PositionEmbeddings | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        cache_position: Tensor | None = None,  # noqa: ARG002  Hugging Face passes it
        **others: Any,
    ) -> TwoTensors:
        """Compute attention. Positional arguments have the order that they had in Hugging Face up to transformers 5.23.

        Args:
            hidden_states: `[batch, seq, d_model]`.
            layer_past: a `transformers` cache, extended in place; `cache` and `past_key_values` are other names for it.
                From 5.24 on, Hugging Face's second argument is `position_embeddings`, and its fourth the cache: both
                are accepted there too.
            attention_mask: see `cgverify.bridge.mask`; None is causal.
            position_ids: integers `[batch or 1, seq]`, rows of the sin/cos table.
            position_embeddings: sine and cosine of the positions, `[batch or 1, seq, rotary_dim / 2]` each, which are
                used instead of the table's.
            **others: without effect, as in Hugging Face's module; so are the arguments that are not listed here.

        Returns:
            The output `[batch, seq, d_model]` and the pattern `[batch, heads, seq, keys]` that was used.

        Raises:
            TypeError: a keyword that Hugging Face's module does not accept.
            ValueError: there are neither positions nor their embeddings, `position_ids` are outside the table (checked
                on the CPU; on other devices indexing raises its own error), or a shape is wrong.
        """
        if others and not self._form.takes_any_keyword:
            raise TypeError(f"forward() got an unexpected keyword argument {next(iter(others))!r}")
        names = "layer_past", "cache", "past_key_values", "attention_mask", "position_ids", "position_embeddings"
        values = layer_past, cache, past_key_values, attention_mask, position_ids, position_embeddings
        arguments = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        wrapped = self.__dict__["_modules"]["_original_component"]
        return cast(TwoTensors, call_as(wrapped, self._attend, hidden_states, **arguments))

    def _attend(
        self,
        hidden_states: Tensor,
        layer_past: Any = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        position_embeddings: PositionEmbeddings | None = None,
        cache: Any = None,
        past_key_values: Any = None,
    ) -> TwoTensors:
        """Compute attention, as `forward` describes it. torch's hooks on the wrapped module are called around this."""
        self._fused.warn_if_changed()
        if isinstance(layer_past, tuple):
            layer_past, position_embeddings = None, layer_past
        if isinstance(position_ids, Cache):
            layer_past, position_ids = position_ids, None
        cache = layer_past if layer_past is not None else past_key_values if cache is None else cache
        if position_embeddings is None:
            check_positions(position_ids, hidden_states, self._table())
        else:
            check_position_embeddings(position_embeddings, hidden_states, self._table().shape[-1])
        cached, keys = key_counts(cache, self._layer_idx, hidden_states.shape[1])
        mask = additive_mask(attention_mask, hidden_states, heads=self.config.n_heads, keys=keys, cached=cached)
        attended = attend_one_token(self, _OWN_STEPS, hidden_states, mask, cache, position_ids, position_embeddings)
        if attended is not None:
            return attended
        output = self._reconstruct_attention(
            *self._project(call_hook_point(self, "hook_in", hidden_states)),
            layer_past=cache,
            attention_mask=mask,
            position_ids=position_ids,
            position_embeddings=position_embeddings,
            cache_dtype=hidden_states.dtype,
        )
        return self._process_output(output)

    def _reconstruct_attention(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> TwoTensors:
        """Return the output and the pattern from q, k and v, `[batch, seq, heads, head_dim]`.

        Keywords: `position_ids`, `position_embeddings` or None, `attention_mask` (additive), `layer_past` (the cache or
        None), and `cache_dtype`, the dtype of the hidden states.
        """
        cache, value = kwargs["layer_past"], v.transpose(1, 2)
        rotated = self._rotate(q, k, kwargs["position_ids"], kwargs.get("position_embeddings"))
        query, key = (self._form.cast_rotated(heads, value) for heads in rotated)
        query = call_hook_point(self, "hook_rot_q", query).transpose(1, 2)
        key = call_hook_point(self, "hook_rot_k", key).transpose(1, 2)
        if cache is not None:
            key, value = self._extend_cache(cache, self._form.cast_cached(key, kwargs["cache_dtype"]), value)
        mask = self._normalize_compatibility_mask_sentinel(kwargs["attention_mask"])
        pattern = self._pattern_of(self._hooked_scores(query, key, mask), value.dtype)
        pattern = call_hook_point(self, "hook_pattern", pattern)
        return self._output(self._mix(pattern, value)), pattern

    def _process_output(self, output: TwoTensors) -> TwoTensors:
        attended = call_hook_point(self, "hook_hidden_states", output[0])
        return call_hook_point(self, "hook_out", attended), output[1]

    def _table(self) -> Tensor:
        """Return sines and cosines of all positions, `[positions, rotary_dim]`."""
        return self._form.table(self.original_component)

    def _project(self, hidden_states: Tensor) -> ThreeTensors:
        """Return q, k and v, each `[batch, seq, heads, head_dim]`."""
        bridges = [self._modules[name] for name in "qkv"]
        if self._is_split_qkv_fork_active():
            require_linear(bridges, "A split input of q, k and v")
            return cast(ThreeTensors, self._split_forward_qkv(hidden_states))
        projected = project(self._modules.get("qkv"), bridges, hidden_states)
        heads = self.config.n_heads
        by_head = (*hidden_states.shape[:2], heads, projected[0].shape[-1] // heads)
        query, key, value = (tensor.view(by_head) for tensor in projected)
        return query, key, value.contiguous()

    def _rotate(
        self, query: Tensor, key: Tensor, position_ids: Tensor, position_embeddings: PositionEmbeddings | None = None
    ) -> TwoTensors:
        """Return rotated q and k, `[batch, seq, heads, head_dim]`."""
        return rotate_both(query, key, *self._sin_cos(position_ids, position_embeddings))

    def _sin_cos(self, position_ids: Tensor, position_embeddings: PositionEmbeddings | None) -> TwoTensors:
        """Return sine and cosine of each position's angles, every value twice: `[batch or 1, seq, 1, rotary_dim]`."""
        if position_embeddings is not None:
            sin, cos = position_embeddings
            return twice(sin), twice(cos)
        if self._table().device != position_ids.device:  # moved once and kept, as in Hugging Face
            self._form.move_table(self.original_component, position_ids.device)
        return sin_cos(self._table(), position_ids)

    def _extend_cache(self, cache: Any, key: Tensor, value: Tensor) -> TwoTensors:
        """Return keys and values of all positions so far, `[batch, heads, keys, head_dim]`, in the model's dtype."""
        return cast(TwoTensors, self._update_kv_cache(key, value, layer_past=cache))

    def _scores(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Return the masked and scaled scores, in float32 in every model, or in the mask's dtype if that is wider."""
        query, key = query.to(torch.float32), key.to(torch.float32).transpose(-1, -2)
        shape, points = (*query.shape[:-1], key.shape[-1]), self.__dict__["_modules"]
        shown_to = points["hook_attn_scores"], points["hook_pattern"]
        out = result_buffer(*shape, dtype=query.dtype, inputs=(query, key), shown_to=shown_to)
        return self._form.mask_and_scale(torch.matmul(query, key, out=out), mask, self.original_component)

    def _hooked_scores(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """Return what `hook_attn_scores` makes of the scores."""
        scores, point = self._scores(query, key, mask), self._modules["hook_attn_scores"]
        if not has_hooks(point):
            return scores
        returned: Tensor = point(scores)
        # Hooks that removed themselves may have kept the scores, which must not be overwritten later.
        return returned if has_hooks(point) else returned.clone()

    def _pattern_of(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the softmax over the keys, cast to the values' dtype, after the module's dropout."""
        pattern = self._scrub_compatibility_pattern_nans(to_dtype(self._masked_softmax(scores), dtype))
        return self._apply_attn_dropout(pattern)

    def _apply_attn_dropout(self, attn_weights: Tensor) -> Tensor:
        return self._form.drop_attention(attn_weights, self.original_component)

    def _masked_softmax(self, attn_scores: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Overwrite scores that no hook has seen and autograd does not need.

        At 2048 tokens that saves a quarter of the time, which is spent on new memory.
        """
        if self.compatibility_mode or dtype is not None or not allows_out(attn_scores):
            return cast(Tensor, super()._masked_softmax(attn_scores, dtype))
        out: Tensor | None = attn_scores
        if has_hooks(self.hook_attn_scores):
            shape, dtype, shown_to = attn_scores.shape, attn_scores.dtype, (self.hook_pattern,)
            out = result_buffer(*shape, dtype=dtype, inputs=(attn_scores,), shown_to=shown_to)
        return torch.softmax(attn_scores, -1, out=out)

    def _mix(self, pattern: Tensor, value: Tensor) -> Tensor:
        """Return z, the values weighted by the pattern, heads concatenated: `[batch, seq, d_model]`."""
        return torch.matmul(pattern, value).transpose(1, 2).flatten(-2)

    def _output(self, z: Tensor) -> Tensor:
        """Apply the output projection (per head under `use_attn_result`) and the residual dropout."""
        if getattr(self.config, "use_attn_result", False):
            require_linear([self.o], "use_attn_result")
            per_head = call_hook_point(self.o, "hook_in", z).unflatten(-1, (self.config.n_heads, -1))
            projected = self._compute_per_head_result(per_head, self.config.n_heads, per_head.shape[-1])
        else:
            projected = call_linear(self._modules["o"], z)
        dropout = getattr(self.original_component, "resid_dropout", None)
        return cast(Tensor, projected if dropout is None else dropout(projected))


_OWN_STEPS = steps_of(CodeGenAttentionBridge)
