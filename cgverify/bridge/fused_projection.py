"""Q, K and V from the fused projection: split weights, or the whole projection if it is more than a plain Linear.

| `qkv_proj` | q, k and v | edits of q, k and v |
|---|---|---|
| a plain `nn.Linear` | three Linears, whose weights are copies of its rows | are used |
| anything else | parts of its output | are not possible: merge it first |

Anything else is an adapter, a quantized Linear, a parametrization, or weights that accelerate fetches. torch's own
hooks on `qkv_proj` fire in both cases. With split weights the product that they see is joined from q, k and v.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

from torch import Tensor, nn

from cgverify.bridge.fast_path import (
    call_hook_point,
    call_linear,
    has_hooks,
    has_own_forward,
    is_plain_linear,
    runs_only_forward,
)
from cgverify.bridge.joint_projection import project_jointly
from cgverify.bridge.module_hooks import call_as
from cgverify.bridge.qkv_layout import PARTITIONS, join_features, split_features, split_weight


def fused_projection(attention: nn.Module) -> nn.Module:
    """Return the `qkv_proj` of a `CodeGenAttention`, over which there may already be a bridge."""
    projection = cast(nn.Module, attention.qkv_proj)
    return cast(nn.Module, projection._modules.get("_original_component", projection))


def can_be_split(projection: nn.Module) -> bool:
    """Return whether a projection is a Linear and nothing more, so that its rows can be used separately.

    It may have a hook of accelerate, if its weight is not elsewhere until its forward.
    """
    weight = projection._parameters.get("weight")
    return (
        type(projection) is nn.Linear
        and type(weight) is nn.Parameter
        and weight.is_floating_point()
        and (not has_own_forward(projection) or ("_hf_hook" in projection.__dict__ and not weight.is_meta))
    )


def require_linear(projections: Iterable[nn.Module], purpose: str) -> None:
    """Raise ValueError unless every projection, or the original of its bridge, is a plain Linear."""
    for projection in projections:
        original = projection._modules.get("_original_component") or projection
        if type(original) is not nn.Linear:
            wrapper = type(original.fused if type(original) is FusedPart else original).__name__
            raise ValueError(f"{purpose} needs plain Linears, not {wrapper}: merge or replace it first.")


def projections_of(bridge: Any) -> Iterator[nn.Module]:
    """Yield the bridges of all projections of attention and MLP."""
    for block in bridge.blocks:
        yield from (block.get_submodule(name) for name in ("attn.qkv", "attn.o", "mlp.in", "mlp.out"))


class FusedPart(nn.Module):
    """Q, K or V as a part of the fused projection's output. It has no weight."""

    bias = None

    def __init__(self, fused: nn.Module, index: int) -> None:
        """
        Args:
            fused: the projection `[…, d_model]` to `[…, 3 * d_model]`, which stays a module of the attention.
            index: 0 for q, 1 for k, 2 for v.
        """
        super().__init__()
        self.index = index
        self._owner = (fused,)  # in a tuple, so that its weights are not this module's as well

    @property
    def fused(self) -> nn.Module:
        return self._owner[0]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return split_features(self.fused(hidden_states))[self.index]


def split_qkv_matrix(attention: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return Q, K and V, `d_model -> d_model`, of a `CodeGenAttention`'s fused `qkv_proj`.

    Pass this function to `CodeGenAttentionBridge` as `split_qkv_matrix`. They are Linears without bias, whose weights
    are copies in the fused weight's dtype and on its device, or parts of a projection that cannot be split.

    Raises:
        ValueError: the heads do not fill four partitions.
    """
    n_heads = cast(int, attention.num_attention_heads)
    if n_heads % PARTITIONS != 0:
        raise ValueError(
            f"CodeGen's fused QKV weight has {PARTITIONS} partitions of whole heads, so the number of heads "
            f"must be a multiple of {PARTITIONS}, not {n_heads}."
        )
    fused = fused_projection(attention)
    if not can_be_split(fused):
        return FusedPart(fused, 0), FusedPart(fused, 1), FusedPart(fused, 2)
    weight = cast(Tensor, fused.weight)
    d_model = weight.shape[1]
    # Created on the meta device, so that no initial weight is allocated and filled only to be replaced.
    q, k, v = (nn.Linear(d_model, d_model, bias=False, device="meta", dtype=weight.dtype) for _ in range(3))
    for linear, part in zip((q, k, v), split_weight(weight.detach()), strict=True):
        linear.weight = nn.Parameter(part, requires_grad=weight.requires_grad)
    return q, k, v


def keep_whole_projection(attention: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Put a projection that cannot be split back into an attention bridge's state, which TransformerLens leaves out."""
    if type(attention.get_submodule("q")._modules.get("_original_component")) is FusedPart:
        state.update(attention.get_submodule("qkv").state_dict(prefix=f"{prefix}qkv."))


def project(fused: Any | None, bridges: Sequence[Any], hidden_states: Tensor) -> tuple[Tensor, ...]:
    """Return q, k and v, `[batch, seq, d_model]`, after all hooks of them and of the fused projection.

    Args:
        fused: the bridge of `qkv_proj`, if there is one.
        bridges: those of q, k and v.
        hidden_states: `[batch, seq, d_model]`.
    """
    whole = type(bridges[0]._modules.get("_original_component")) is FusedPart
    if fused is None or not (whole or _is_listened_to(fused)):
        return project_jointly(bridges, hidden_states) or tuple(call_linear(each, hidden_states) for each in bridges)
    plain = [is_plain_linear(bridge) for bridge in bridges]

    def product(tensor: Tensor) -> Tensor:
        return join_features(*_parts(bridges, plain, tensor))

    def forward(tensor: Tensor) -> Tensor:
        tensor = call_hook_point(fused, "hook_in", tensor)
        linear = fused._modules["_original_component"]
        joined = product(tensor) if whole else call_as(linear, product, tensor)
        return call_hook_point(fused, "hook_out", joined)

    parts = split_features(call_as(fused, forward, hidden_states))
    return tuple(
        call_hook_point(bridge, "hook_out", part) if is_plain else part
        for bridge, is_plain, part in zip(bridges, plain, parts, strict=True)
    )


def _is_listened_to(fused: Any) -> bool:
    own: dict[str, Any] = fused._modules
    return not runs_only_forward(fused, *own.values()) and (
        has_hooks(fused)
        or has_hooks(own["hook_in"])
        or has_hooks(own["hook_out"])
        or has_hooks(own["_original_component"])
    )


def _parts(bridges: Sequence[Any], plain: Sequence[bool], hidden_states: Tensor) -> list[Tensor]:
    """Return q, k and v before their `hook_out`. A whole projection runs once for each input that hooks make of it.

    A bridge that does more than call its hook points and its Linear is called whole, its `hook_out` included.
    """
    parts: list[Tensor] = []
    known: tuple[Tensor, int, tuple[Tensor, ...]] | None = None
    for bridge, is_plain in zip(bridges, plain, strict=True):
        if not is_plain:
            parts.append(bridge(hidden_states))
            continue
        given = call_hook_point(bridge, "hook_in", hidden_states)
        projection = bridge._modules["_original_component"]
        if type(projection) is not FusedPart:
            parts.append(projection(given))
            continue
        version = 0 if given.is_inference() else given._version
        if given.is_inference() and has_hooks(bridge._modules["hook_in"]):
            known = None  # changes in place of an inference tensor are not counted
        if known is None or known[0] is not given or known[1] != version:
            known = given, version, split_features(projection.fused(given))
        parts.append(known[2][projection.index])
    return parts
