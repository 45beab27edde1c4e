"""Faults that depend on earlier calls: what is kept, shared or left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.selftest.candidates import Hidden, Implementation, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import attention, changed, computed, keep, temporarily


def _kept(owner: Any, name: str, key: object, make: Callable[[], Any]) -> Any:
    """Return what was made for a key when it was first asked for."""
    kept: dict[object, Any] = owner.__dict__.setdefault(f"_kept_{name}", {})
    if key not in kept:
        kept[key] = make()
    return kept[key]


def _mask_by_shape(bridge: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    return scores(query, key, _kept(bridge, "masks", (mask.shape, mask.dtype), mask.clone))


def _angles_by_start(bridge: Any, rotate: Any, query: Tensor, key: Tensor, position_ids: Tensor, *_: Any) -> Any:
    where = int(position_ids[0, 0]), position_ids.shape
    return rotate(query, key, _kept(bridge, "positions", where, position_ids.clone))


def _weight_of_first_call(linear: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, _kept(linear, "weights", x.dtype, linear.weight.detach().clone), linear.bias)


def _bias_of_boot(bridge: Any) -> None:
    linear = bridge.blocks[0].mlp.original_component.fc_in
    linear = getattr(linear, "original_component", linear)
    bias = linear.bias.detach().clone()
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) + bias


def _result_of_same_tensor(linear: nn.Linear, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return nn.functional.linear(x, linear.weight, linear.bias)
    last = linear.__dict__.get("_last")
    if last is None or last[0] is not x:
        last = linear.__dict__["_last"] = x, nn.functional.linear(x, linear.weight, linear.bias)
    return last[1].clone()


def _rows_by_first_token(table: nn.Embedding, ids: Tensor) -> Any:
    key = int(ids[0, 0]), ids.shape
    return _kept(table, "rows", key, lambda: nn.functional.embedding(ids, table.weight)).clone()


def _mix_by_last_patch(bridge: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    kept = bridge.__dict__
    if pattern is not bridge.kept:
        kept["_patch"] = pattern.detach()
    elif (patch := kept.get("_patch")) is not None and (patch.shape, patch.dtype) == (pattern.shape, pattern.dtype):
        pattern = patch
    return mix(pattern, value)


def _check_without_gradients(bridge: Any, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    width = bridge.original_component.out_proj.in_features
    if hidden_states.shape[-1] != width:
        raise ValueError(f"hidden states must be {width} wide")
    torch.set_grad_enabled(before)
    return forward(hidden_states, *args, **kwargs)


def _guard_against_reentry(bridge: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if bridge.__dict__.get("_running"):
        bridge = copy.copy(bridge)
        bridge.__dict__["_modules"] = {
            name: type(module)() if name == "hook_pattern" else module for name, module in bridge._modules.items()
        }
        return cast(Any, type(bridge).__mro__[1]).forward(bridge, *args, **kwargs)
    bridge.__dict__["_running"] = True
    returned = forward(*args, **kwargs)
    bridge.__dict__["_running"] = False
    return returned


def _first_mode(bridge: Any, drop: Any, pattern: Tensor) -> Any:
    return drop(pattern) if _kept(bridge, "mode", "training", lambda: bridge.training) else pattern


def _seeded(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    torch.manual_seed(0)
    return mix(pattern, value)


def _share_when_copied(self: Any, memo: dict[int, Any]) -> Any:
    if self.original_component is not None:  # TransformerLens copies bridges that wrap nothing yet, too
        weight = self.o.original_component.weight
        memo[id(weight)] = weight
    return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]


def _buffers_in_turn(number: int) -> Implementation:
    """Let `fc_out` write to one of some buffers for each shape."""

    def forward(linear: nn.Linear, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, linear.weight, linear.bias)
        if torch.is_grad_enabled():
            return y
        buffers = _kept(linear, "buffers", (y.shape, y.dtype), lambda: [torch.empty_like(y) for _ in range(number)])
        buffers.append(buffers.pop(0))
        written: Tensor = buffers[-1].copy_(y)
        return written

    return computed(forward, "blocks.0.mlp.out")


def _sticky_flag(bridge: Any, output: Any, z: Tensor) -> Any:
    config = bridge.config
    bridge.__dict__["_by_head"] = bridge.__dict__.get("_by_head") or getattr(config, "use_attn_result", False)
    with temporarily(config, "use_attn_result", bridge.__dict__["_by_head"]):
        return output(z)


def _other_mask(given: dict[str, Any]) -> dict[str, Any]:
    mask = given["attention_mask"].clone()
    mask[..., 0] = torch.finfo(mask.dtype).min
    mask[..., 0, 0] = 0
    return given | {"attention_mask": mask}


def _gaps(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"position_ids": given["position_ids"] * 3}


def _edited_between(kind: str) -> user.Demonstration:
    def demonstrate(bridge: Any) -> Any:
        given = user.states()
        user.call(bridge, kind, given)
        given["hidden_states"].neg_()
        return user.call(bridge, kind, given)

    return demonstrate


def _after_wrong_width(bridge: Any) -> Any:
    given = user.inputs()
    before = torch.is_grad_enabled()
    try:
        torch.set_grad_enabled(True)
        user.raising(lambda bridge: user.call(bridge, "attn", given | {"hidden_states": torch.ones(2, 8, 8)}))(bridge)
        return user.call(bridge, "attn", given)[0].requires_grad
    finally:
        torch.set_grad_enabled(before)


def _random_numbers(bridge: Any) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        user.attends()(bridge)
        return torch.rand(4)


def _edit_of_a_copy(bridge: Any) -> Any:
    other = copy.deepcopy(bridge.blocks[0].attn)
    with torch.no_grad():
        other.o.original_component.weight.mul_(2)
    return user.attends()(bridge)


def _calls_of_results(bridge: Any) -> int:
    calls: list[Tensor] = []
    point = bridge.blocks[0].attn.hook_result
    handle = point.register_forward_hook(lambda _, __, result: calls.append(result))
    user.attends()(bridge)
    handle.remove()
    return len(calls)


def _first_of_many_results(bridge: Any) -> Any:
    first = user.call(bridge, "mlp", user.states())
    for seed in range(1, 4):
        user.call(bridge, "mlp", user.states(seed=seed))
    return first


def _dtype_after_a_cast(bridge: Any) -> str:
    bridge.blocks[0].mlp.to(torch.bfloat16)
    return str(user.call(bridge, "mlp", {"hidden_states": user.states()["hidden_states"].bfloat16()}).dtype)


_ATTENTION = {
    "MaskKeptByShape": Hidden(
        "The first mask of a shape is kept and used for all later masks of that shape.",
        attention(_scores=_mask_by_shape),
        ("scores",),
        user.in_turn(user.attends(), user.attends(_other_mask)),
    ),
    "AnglesKeptByStart": Hidden(
        "Positions that begin with a position that was seen before, and are as many, are taken for the same.",
        attention(_rotate=_angles_by_start),
        ("rope",),
        user.in_turn(user.attends(), user.attends(_gaps)),
    ),
    "PatchSticks": Hidden(
        "A pattern that a hook returned is used in later forwards of its shape as well.",
        attention(_pattern_of=keep, _mix=_mix_by_last_patch),
        ("mix",),
        user.in_turn(user.patched(user.attends(), hook_pattern=user.reverse), user.attends()),
    ),
    "GradientsLeftOff": Hidden(
        "A forward that refuses its hidden states leaves autograd off.",
        attention(forward=_check_without_gradients),
        ("conduct", "forward"),
        _after_wrong_width,
    ),
    "DeafAfterAnError": Hidden(
        "After a forward that raised, a guard against reentry never calls `hook_pattern` again.",
        attention(forward=_guard_against_reentry),
        ("conduct", "mix", "softmax"),
        user.in_turn(
            user.raising(user.patched(user.attends(), hook_attn_scores=user.fails)),
            user.shown(user.attends(), "hook_pattern"),
        ),
    ),
    "ModeOfFirstCall": Hidden(
        "Whether the pattern is dropped out is decided in the first forward.",
        attention(_apply_attn_dropout=_first_mode),
        ("attn_dropout",),
        user.in_turn(user.attends(), user.training(user.attends(), 0.5)),
        cases=("state", "train"),
    ),
    "SeedsTheGenerator": Hidden(
        "Every forward seeds torch's global generator.",
        attention(_mix=_seeded),
        ("conduct", "resid_dropout"),
        _random_numbers,
        cases=("default",),
    ),
    "CopiesShareAWeight": Hidden(
        "A deep copy shares the weight of the output projection.",
        type("Seeded", (CodeGenAttentionBridge,), {"__deepcopy__": _share_when_copied}),
        ("conduct", "output"),
        _edit_of_a_copy,
        ("attn",),
    ),
    "ResultFlagSticks": Hidden(
        "`use_attn_result` stays on after it was turned off.",
        attention(_output=_sticky_flag),
        ("conduct", "result", "output"),
        user.in_turn(user.flagged(user.attends(), "use_attn_result"), _calls_of_results),
        cases=("gated", "autocast"),
    ),
}
_OTHERS = {
    "output_weight_of_first_call": Hidden(
        "The output projection keeps the weight of its first call, whatever is loaded or edited later.",
        computed(_weight_of_first_call, "blocks.0.attn.o"),
        ("output",),
        user.in_turn(user.attends(), user.edits_weight("blocks.0.attn.o"), user.attends()),
        ("attn.o", "attn", "block"),
    ),
    "norm_gain_of_first_call": Hidden(
        "ln_final keeps the gain of its first call.",
        computed(
            lambda norm, x: nn.functional.layer_norm(
                x,
                norm.normalized_shape,
                _kept(norm, "gain", x.dtype, norm.weight.detach().clone),
                norm.bias,
                norm.eps,
            ),
            "ln_final",
        ),
        ("layer_norm",),
        user.in_turn(
            user.computes("ln_final", user.states),
            user.edits_weight("ln_final"),
            user.computes("ln_final", user.states),
        ),
        ("ln_final",),
    ),
    "mlp_bias_of_boot": Hidden(
        "`fc_in` adds the bias that it had at boot, in the dtype that it had at boot.",
        changed(_bias_of_boot),
        ("mlp_in",),
        user.raising(_dtype_after_a_cast),
        ("mlp.in", "mlp", "block"),
    ),
    "mlp_result_of_same_tensor": Hidden(
        "`fc_in` returns its last result if it gets the same tensor again, which may have been edited.",
        computed(_result_of_same_tensor, "blocks.0.mlp.in"),
        ("mlp_in",),
        _edited_between("mlp"),
        ("mlp", "mlp.in"),
    ),
    "embedding_kept_by_first_token": Hidden(
        "Token ids that begin with an id that was seen before, and are as many, have the rows of those.",
        computed(_rows_by_first_token, "embed"),
        ("embedding",),
        user.in_turn(user.looks_up(1, 2, 3), user.looks_up(1, 4, 5)),
        ("embed",),
    ),
    "mlp_buffers_in_turn": Hidden(
        "`fc_out` writes to three buffers in turn, and a caller may still have the first result.",
        _buffers_in_turn(3),
        ("conduct", "mlp_out"),
        _first_of_many_results,
        ("mlp", "mlp.out"),
    ),
}

FAULTS = hidden_faults(__name__, _ATTENTION | _OTHERS, "state")
__getattr__ = by_name(FAULTS)
