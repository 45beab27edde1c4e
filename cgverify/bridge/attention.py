"""The attention of CodeGen, recomputed step by step so that every tensor on the way can be read and patched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from cgverify.bridge.fused_qkv import join_features, split_features
from cgverify.bridge.fused_weight import FusedWeight
from cgverify.bridge.listeners import is_bare, is_heard, run_linear, show, takes_out
from cgverify.bridge.mask import additive_mask
from cgverify.bridge.rotary import check_positions, rotate_both, sin_cos
from cgverify.bridge.scratch import cast as cast_to
from cgverify.bridge.scratch import room_for
from cgverify.bridge.stacked import project_together, stack

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
    into `hook_q_input`, `hook_k_input`, `hook_v_input` or `hook_attn_in` (`[B, S, H, d_model]`). While somebody
    listens there, `qkv.hook_in` and `qkv.hook_out` (`[B, S, 3·d_model]`, in the fused weight's order) fire as well.

    Q, K and V come from the three Linears that `split_qkv_matrix` returned, never from the fused weight: `refresh`
    splits that anew after an edit, and an edit that can be seen warns. The tensors keep the memory layout that they
    have in Hugging Face, which decides the kernel of each product and so the last bit. Mask, scale and softmax work in
    place on scores that nobody has seen; what a hook has seen is never written to.
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
        self._split_from = FusedWeight.absent()
        self._processed = False
        self.register_load_state_dict_pre_hook(lambda module, state, prefix, *_: module._before_load(state, prefix))
        self.register_load_state_dict_post_hook(lambda module, _: module._after_load())
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
        self._note_fused()
        self._stack_projections()

    def _stack_projections(self) -> None:
        projections = [self._modules[name] for name in "qkv"]
        stack([getattr(projection, "original_component", projection) for projection in projections])

    def _note_fused(self) -> None:
        """Take the fused weight as it is now for the one that Q, K and V belong to."""
        self._split_from = FusedWeight.of(cast(nn.Module, self.original_component))

    def _before_load(self, state_dict: dict[str, torch.Tensor], prefix: str) -> None:
        if not self._split_from.is_left_behind(self, state_dict, prefix):
            self._split_from = FusedWeight.absent()

    def _after_load(self) -> None:
        if self._split_from.owner is None:
            self._note_fused()

    def _apply(self, fn: Any, recurse: bool = True) -> CodeGenAttentionBridge:
        """`to`, `half`, `cuda`: all weights move together, which is no edit of one of them."""
        edited = self._split_from.has_changed
        moved: CodeGenAttentionBridge = super()._apply(fn, recurse)
        if self.original_component is not None:
            self._stack_projections()
            if not edited:
                self._note_fused()
        return moved

    def refresh(self) -> None:
        """Split the fused weight anew, after it was edited or replaced. Q, K and V are written in place.

        Raises:
            ValueError: there is no fused weight any more, since `drop_fused` dropped it; or Q, K and V were processed.
        """
        if self._processed:
            raise ValueError(
                "enable_compatibility_mode has processed Q, K and V, which are no longer a split of the fused weight: "
                "edit q, k and v themselves, or edit the fused weight of a bridge booted anew before processing it."
            )
        original = cast(nn.Module, self.original_component)
        now = FusedWeight.of(original)
        if now.weight is None:
            raise ValueError("There is no fused weight to split: this bridge was booted with keep_fused=False.")
        with torch.no_grad():
            for projection, fresh in zip((self.q, self.k, self.v), self.split_qkv_matrix(original), strict=True):
                projection.original_component.weight.copy_(fresh.weight)
        self._split_from = now

    def set_processed_weights(self, weights: dict[str, torch.Tensor], verbose: bool = False) -> None:
        """Take the weights that TransformerLens has processed, layer norms folded in; `refresh` would undo that."""
        super().set_processed_weights(weights, verbose=verbose)
        self._processed = True

    def drop_fused(self) -> None:
        """Free the fused weight, of which Q, K and V are copies; `join_weight` gives it back."""
        self._split_from = self._split_from.drop()

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
        mask = additive_mask(
            None, batch=batch_size, heads=1, queries=seq_len, keys=seq_len, cached=0, dtype=dtype, device=device
        )
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
            ValueError: no `position_ids`, positions that the table has not (seen on the CPU; other devices raise what
                indexing raises there), or a mask of the wrong shape.
        """
        self._split_from.warn_if_changed()
        cache = layer_past if layer_past is not None else past_key_values
        batch, queries = hidden_states.shape[:2]
        check_positions(position_ids, batch=batch, queries=queries, table=self._table())
        cached = int(cache.get_seq_length(self._layer_idx)) if cache is not None else 0
        mask = additive_mask(
            attention_mask,
            batch=batch,
            heads=cast(Any, self.config).n_heads,
            queries=queries,
            keys=cache.get_mask_sizes(queries, self._layer_idx)[0] if cache is not None else queries,
            cached=cached,
            dtype=hidden_states.dtype,
            device=hidden_states.device,
        )
        output = self._reconstruct_attention(
            *self._project(show(self, "hook_in", hidden_states)),
            layer_past=cache,
            attention_mask=mask,
            position_ids=position_ids,
            cache_dtype=hidden_states.dtype,
        )
        returned: tuple[torch.Tensor, torch.Tensor] = self._process_output(output)
        return returned

    def _reconstruct_attention(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From q, k and v, `[batch, seq, heads, head_dim]`, to the output and the pattern.

        Keywords: `position_ids`, `attention_mask` (additive), and the cache as `layer_past` or None, whose keys are
        kept in `cache_dtype`, the dtype of the hidden states.
        """
        cache = kwargs["layer_past"]
        query, key = self._rotate(q, k, kwargs["position_ids"])
        query = show(self, "hook_rot_q", query.transpose(1, 2))
        key = show(self, "hook_rot_k", key.transpose(1, 2))
        value = v.transpose(1, 2)
        if cache is not None:
            key, value = self._extend_cache(cache, key.to(kwargs["cache_dtype"]), value)
        mask = self._normalize_compatibility_mask_sentinel(kwargs["attention_mask"])
        pattern = show(self, "hook_pattern", self._pattern_of(self._shown_scores(query, key, mask), value.dtype))
        return self._output(self._mix(pattern, value)), pattern

    def _process_output(self, output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        attended, pattern = output
        return show(self, "hook_out", show(self, "hook_hidden_states", attended)), pattern

    def _rotary_dim(self) -> int:
        """How many dimensions of a head turn; all of them where the module's `rotary_dim` is None."""
        rotary_dim = cast(int | None, cast(nn.Module, self.original_component).rotary_dim)
        return cast(int, cast(Any, self.config).d_head) if rotary_dim is None else rotary_dim

    def _table(self) -> torch.Tensor:
        """Sines and cosines of all positions, `[positions, rotary_dim]`."""
        return cast(torch.Tensor, cast(nn.Module, self.original_component).embed_positions)

    def _project(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v, each `[batch, seq, heads, head_dim]`."""
        if self._is_split_qkv_fork_active():
            forked: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._split_forward_qkv(hidden_states)
            return forked
        fused = self._modules.get("qkv")
        if fused is not None and (is_heard(fused._modules["hook_in"]) or is_heard(fused._modules["hook_out"])):
            projected = self._project_fused(fused, hidden_states)
        else:
            apart = [self._modules[name] for name in "qkv"]
            projected = project_together(apart, hidden_states) or tuple(run_linear(one, hidden_states) for one in apart)
        heads = cast(Any, self.config).n_heads
        by_head = (*hidden_states.shape[:2], heads, projected[0].shape[-1] // heads)
        query, key, value = (tensor.view(by_head) for tensor in projected)
        return query, key, value.contiguous()

    def _project_fused(self, fused: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """q, k and v, `[batch, seq, d_model]`, shown to the hooks of `qkv` as the one tensor of the fused weight.

        A projection that does more than its hook points and its Linear is run whole, so its `hook_out` comes first.
        """
        hidden_states = fused.hook_in(hidden_states)
        projections = [self._modules[name] for name in "qkv"]
        bare = [is_bare(projection) for projection in projections]
        apart = (
            one._modules["_original_component"](show(one, "hook_in", hidden_states)) if in_parts else one(hidden_states)
            for one, in_parts in zip(projections, bare, strict=True)
        )
        parts = split_features(fused.hook_out(join_features(*apart)))
        return tuple(
            show(one, "hook_out", part) if in_parts else part
            for one, in_parts, part in zip(projections, bare, parts, strict=True)
        )

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated q and k, `[batch, seq, heads, head_dim]`."""
        table = self._table()
        if table.device != position_ids.device:  # once, as in Hugging Face, and not in every forward
            table = cast(Any, self.original_component).embed_positions = table.to(position_ids.device)
        return rotate_both(query, key, *sin_cos(table, position_ids))

    def _extend_cache(self, cache: Any, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all positions so far, `[batch, heads, keys, head_dim]`, in the model's dtype."""
        extended: tuple[torch.Tensor, torch.Tensor] = self._update_kv_cache(key, value, layer_past=cache)
        return extended

    def _scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(q·kᵀ + mask) / √head_dim, in float32 whatever the model's dtype, or in the mask's if that is wider."""
        query, key = query.to(torch.float32), key.to(torch.float32).transpose(-1, -2)
        room = None
        if not key.requires_grad:  # what `room_for` would find out later
            room = room_for(*query.shape[:-1], key.shape[-1], dtype=query.dtype, of=(query, key))
        scores = torch.matmul(query, key, out=room)
        promoted = torch.promote_types(scores.dtype, mask.dtype)
        scores = scores.add_(mask) if promoted == scores.dtype else scores + mask
        return scores.div_(cast(float, cast(nn.Module, self.original_component).scale_attn))

    def _shown_scores(self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What `hook_attn_scores` makes of the scores."""
        scores, point = self._scores(query, key, mask), self._modules["hook_attn_scores"]
        if not is_heard(point):
            return scores
        shown: torch.Tensor = point(scores)
        # Hooks that took themselves off may keep what they saw, and nobody would know of them when it is overwritten.
        return shown if is_heard(point) else shown.clone()

    def _pattern_of(self, scores: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Softmax over the keys, cast to the values' dtype, with the module's dropout."""
        pattern = self._scrub_compatibility_pattern_nans(cast_to(self._masked_softmax(scores), dtype))
        dropped: torch.Tensor = self._apply_attn_dropout(pattern)
        return dropped

    def _masked_softmax(self, attn_scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Scores that no hook has seen and autograd does not need are overwritten: at 2048 tokens that saves a quarter
        of the time, which goes into fresh memory."""
        if self.compatibility_mode or dtype is not None or not takes_out(attn_scores):
            softmax: torch.Tensor = super()._masked_softmax(attn_scores, dtype)
            return softmax
        seen = is_heard(self.hook_attn_scores)
        room = room_for(*attn_scores.shape, dtype=attn_scores.dtype, of=(attn_scores,)) if seen else attn_scores
        return torch.softmax(attn_scores, -1, out=room)

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
            projected = run_linear(self._modules["o"], z)
        dropout = getattr(self.original_component, "resid_dropout", None)
        return cast(torch.Tensor, projected if dropout is None else dropout(projected))
