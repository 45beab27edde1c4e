"""Hooks whose effect depends on the mode, the flags, the other hooks, or on how a hook returns its tensor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from cgverify.bridge.fast_path import call_hook_point, has_hooks
from cgverify.selftest.candidates import Hidden, Implementation, by_name, hidden_faults
from cgverify.selftest.seeded import demonstrations as user
from cgverify.selftest.seeded.seeding import attention, changed, is_hidden, keep, rehooked, temporarily


def _deaf_pattern(when: Callable[[Any, Tensor], bool]) -> Implementation:
    """Mix by the pattern that the hook was shown, under a condition."""
    return attention(
        _pattern_of=keep,
        _mix=lambda bridge, mix, pattern, value: mix(bridge.kept if when(bridge, pattern) else pattern, value),
    )


def _result_of_shown_z(bridge: Any, output: Any, z: Tensor) -> Any:
    if not getattr(bridge.config, "use_attn_result", False):
        return output(z)
    call_hook_point(bridge.o, "hook_in", z)
    by_head = z.unflatten(-1, (bridge.config.n_heads, -1))
    result = bridge._compute_per_head_result(by_head, bridge.config.n_heads, by_head.shape[-1])
    return bridge.original_component.resid_dropout(result)


def _scored(use: Callable[[Any, Any, Tensor], Tensor]) -> Implementation:
    """Compute what follows the scores from `use(bridge, point, scores)` while their hook point has hooks."""

    def hooked(bridge: Any, inherited: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
        bridge.__dict__["_mask"] = mask
        if not has_hooks(bridge.hook_attn_scores):
            return inherited(query, key, mask)
        return use(bridge, bridge.hook_attn_scores, bridge._scores(query, key, mask))

    return attention(_hooked_scores=hooked)


def _unless_autocast(_: Any, point: Any, scores: Tensor) -> Tensor:
    returned: Tensor = point(scores)
    return scores.clone() if torch.is_autocast_enabled("cpu") else returned


def _edit_lost(_: Any, point: Any, scores: Tensor) -> Tensor:
    shown = scores.clone()
    returned: Tensor = point(shown)
    return scores if returned is shown else returned


def _unless_removed(_: Any, point: Any, scores: Tensor) -> Tensor:
    returned: Tensor = point(scores)
    return returned if has_hooks(point) else scores.clone()


def _masked_again(bridge: Any, point: Any, scores: Tensor) -> Tensor:
    returned: Tensor = point(scores)
    if returned is scores:
        return returned
    return returned.masked_fill(is_hidden(bridge._mask), torch.finfo(scores.dtype).min)


def _note_scores(bridge: Any, pattern_of: Any, scores: Tensor, dtype: torch.dtype) -> Any:
    bridge.__dict__["_patched_scores"] = scores is not bridge.__dict__.get("_own_scores")
    return keep(bridge, pattern_of, scores, dtype)


def _own_scores(bridge: Any, scores: Any, *args: Any) -> Any:
    bridge.__dict__["_own_scores"] = result = scores(*args)
    return result


def _by_address(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    if not pattern.is_contiguous() and pattern.untyped_storage().nbytes() >= pattern.numel() * pattern.element_size():
        pattern = torch.as_strided(pattern, pattern.shape, torch.empty(pattern.shape).stride())
    return mix(pattern, value)


def _swallowed(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    try:
        return show(x)
    except RuntimeError:
        return x


def _last_alone(point: str) -> Implementation:
    """Call every hook of a point with the original tensor, and use what the last one returns."""

    class LastAlone(HookPoint):  # type: ignore[misc]
        def __call__(self, x: Tensor) -> Tensor:
            result = x
            for hook in list(self._forward_hooks.values()):
                returned = hook(self, (x,), x)
                result = x if returned is None else returned
            return result

    return changed(lambda bridge: setattr(bridge.get_submodule(point), "__class__", LastAlone))


def _backward_unheard(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    point: Any = show.__self__  # type: ignore[attr-defined]
    with temporarily(point, "_backward_hooks", OrderedDict()):
        return show(x)


def _under_autocast(bridge: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return user.attends()(bridge)


def _once(bridge: Any) -> Any:
    """Patch by a hook that removes itself when it is called."""
    point = bridge.blocks[0].attn.hook_attn_scores

    def hook(scores: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
        point.remove_hooks()
        return scores.flip(1)

    point.add_hook(hook)
    return user.attends()(bridge)


def _zeroed_in_place(scores: Tensor) -> None:
    scores[:, 0] = 0


def _two_hooks(bridge: Any) -> Any:
    name = "blocks.0.attn.hook_pattern"
    functions = [(name, lambda x, hook: x * 2), (name, lambda x, hook: x.flip(1))]  # noqa: ARG005
    with bridge.hooks(fwd_hooks=functions):
        return user.attends()(bridge)


def _backward_hook(bridge: Any) -> Any:
    seen: list[Tensor] = []

    def hook(gradient: Tensor, hook: Any) -> None:  # noqa: ARG001
        seen.append(gradient.clone())

    point = bridge.blocks[0].attn.hook_pattern
    point.add_hook(hook, dir="bwd")
    user.differentiated(lambda bridge, given: user.call(bridge, "attn", given)[0])(bridge)
    point.remove_hooks(dir="bwd")
    return seen


_MIXED = {
    "DeafInTraining": Hidden(
        "What a hook of the pattern returns is used in eval mode only.",
        _deaf_pattern(lambda bridge, _: bridge.training),
        ("mix",),
        user.training(user.patched(user.attends(), hook_pattern=user.reverse)),
    ),
    "DeafForOneToken": Hidden(
        "What a hook of the pattern returns is not used for a single query.",
        _deaf_pattern(lambda _, pattern: pattern.shape[2] == 1),
        ("mix",),
        user.patched(user.decodes(4, 1), hook_pattern=user.reverse),
    ),
    "DeafForOneSequence": Hidden(
        "What a hook of the pattern returns is not used for a batch of one.",
        _deaf_pattern(lambda _, pattern: len(pattern) == 1),
        ("mix",),
        user.patched(user.attends(batch=1), hook_pattern=user.reverse),
    ),
    "SecondPatchLost": Hidden(
        "If hooks replace scores and pattern, the pattern is computed from the scores.",
        attention(
            _scores=_own_scores,
            _pattern_of=_note_scores,
            _mix=lambda bridge, mix, pattern, value: mix(bridge.kept if bridge._patched_scores else pattern, value),
        ),
        ("mix",),
        user.patched(user.attends(), hook_attn_scores=user.reverse, hook_pattern=user.doubled),
    ),
    "ReturnedStridesAssumed": Hidden(
        "A pattern that a hook returns is read as if it were contiguous.",
        attention(_mix=_by_address),
        ("mix",),
        user.patched(user.attends(), hook_pattern=lambda x: x.mT.contiguous().mT * 2),
    ),
    "SameDtypeAssumed": Hidden(
        "A pattern that a hook returns in float64 is not used.",
        attention(
            _pattern_of=keep,
            _mix=lambda bridge, mix, pattern, value: mix(
                pattern if pattern.dtype == bridge.kept.dtype else bridge.kept, value
            ),
        ),
        ("mix",),
        user.raising(user.patched(user.attends(), hook_pattern=lambda x: x.double().flip(1))),
    ),
}
_SCORED = {
    "DeafUnderAutocast": Hidden(
        "What a hook of the scores returns is not used under autocast.",
        _scored(_unless_autocast),
        ("softmax",),
        user.patched(_under_autocast, hook_attn_scores=user.reverse),
    ),
    "EditInPlaceLost": Hidden(
        "A hook of the scores gets a copy, so that an edit in place is lost.",
        _scored(_edit_lost),
        ("softmax",),
        user.patched(user.attends(), hook_attn_scores=_zeroed_in_place),
    ),
    "RemovedHookUnheard": Hidden(
        "What a hook of the scores returns is not used if the hook removed itself.",
        _scored(_unless_removed),
        ("softmax",),
        _once,
    ),
    "MaskedAgain": Hidden(
        "Scores that a hook returned are masked once more.",
        _scored(_masked_again),
        ("softmax",),
        user.patched(user.attends(), hook_attn_scores=torch.zeros_like),
    ),
}
_OTHERS = {
    "DeafUnderTheResultFlag": Hidden(
        "What a hook of z returns is not used with `use_attn_result`.",
        attention(_output=_result_of_shown_z),
        ("result",),
        user.flagged(user.patched(user.attends(), o_hook_in=user.doubled), "use_attn_result"),
    ),
    "hook_error_swallowed": Hidden(
        "An error that a hook of the pattern raises is swallowed.",
        rehooked("blocks.0.attn.hook_pattern", _swallowed),
        ("conduct", "mix"),
        user.raising(user.patched(user.attends(), hook_pattern=user.fails)),
    ),
    "last_hook_alone": Hidden(
        "Of two hooks of the pattern, the second one gets the original, and what the first one returns is lost.",
        _last_alone("blocks.0.attn.hook_pattern"),
        ("mix", "conduct"),
        _two_hooks,
    ),
    "backward_hook_unheard": Hidden(
        "Hooks of the pattern's gradient are not called.",
        rehooked("blocks.0.attn.hook_pattern", _backward_unheard),
        ("conduct", "gradient"),
        _backward_hook,
        cases=("backward",),
    ),
}

FAULTS = hidden_faults(__name__, _MIXED | _SCORED | _OTHERS, "patched")
__getattr__ = by_name(FAULTS)
