"""`patched`: each hook in turn returns another tensor, and every later operation must have used it.

People use hooks to intervene; a hook that only shows a tensor is half a hook. There is one forward for each hook of
attention (with its flag on, if it has one), MLP, embeddings, norms and unembedding, and for the block's own hooks:
residual stream, layer norm, inputs and outputs of attention and MLP. Attention and block have a second forward for each
hook without a flag, of one token after a prefill and with autograd on. Each hook has more forwards, as far as it can:

| step | settings, all at once |
|---|---|
| `HOOK in settings` | training, `use_attn_result`, one sequence; large, strided values; a hook that removes itself; |
| | another hook at the same place, and one at a later place that returns another tensor too |
| `HOOK autocast` | under `torch.autocast` |
| `HOOK edited` | an edit in place, after which every other hook returns nothing |

The returned tensor is drawn from the seed and is unrelated to the one that the hook received. The stage that made the
tap is not judged. All later stages are, from the returned tensor on, and only by their bounds, since Hugging Face has
no hooks and computes with other tensors. In place are edited only tensors that are the result of an operation, not
those that other hooks, or the caller, have as well. What a hook raises must come out of the forward. A tensor in
another dtype may be cast, or refused where Hugging Face's arithmetic would refuse it, but not ignored. A hook under a
flag that fires in one step must fire in all.

Only this case sees a return value that is ignored, used in part (some heads; the values but not the returned pattern),
used in other places too, or used in some settings alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from cgverify.common.records import EAGER
from cgverify.observe.cases import gated
from cgverify.observe.cases.autocast import autocast_dtypes, under_autocast
from cgverify.observe.cases.case import Case
from cgverify.observe.components import FLAG_RESULT, FLAGGED_HOOKS, Component
from cgverify.observe.conditions import Conditions, Patch
from cgverify.observe.inputs import Inputs, InputSpec, Step, leave_unchanged, slice_tokens
from cgverify.observe.replacement import stages_after_replacing
from cgverify.observe.stages import Stage
from cgverify.oracle.arithmetic import HALVES

IN_BLOCK = ("hook_in", "ln1.", "attn.hook_in", "attn.hook_out", "mlp.", "hook_out")
"""Prefixes of the taps that are patched in a block. The other hooks of attention are patched in attention alone."""


def patched_taps(component: Component) -> dict[str, tuple[str, ...]]:
    """The taps that are patched, in the order of the computation, each with the flags that it needs."""
    taps = [stage.tap for stage in component.stages(False) if not stage.tap.startswith("returned")]
    if component.kind == "block":
        taps = [tap for tap in taps if tap.startswith(IN_BLOCK)]
    unflagged: dict[str, tuple[str, ...]] = dict.fromkeys(taps, ())
    return unflagged | {tap: (flag,) for flag, own in FLAGGED_HOOKS.get(component.kind, {}).items() for tap in own}


_OWN_MEMORY = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_z")
"""Taps of attention that are the result of an operation, and that nothing but the next one reads."""

_OF_MLP = ("in.hook_out", "out.hook_in")
"""Those of the MLP."""


def _steps(component: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    taps = patched_taps(component)
    one_row = {name: value[:1] for name, value in inputs.items()}  # made once: Hugging Face's side runs once on it
    steps = []
    for place, (tap, flags) in enumerate(taps.items()):
        once = Step(tap, inputs, Conditions(flags=flags, patch=Patch(tap, spec.seed)))
        is_odd = (place + spec.seed) % 2 == 1
        steps += [once, _at_once(replace(once, inputs=one_row), component, spec, is_followed=not is_odd)]
        if tap == "hook_attn_scores":
            both = replace(once.conditions, second_patch=Patch("hook_pattern", spec.seed))
            steps.append(replace(once, name=f"{tap} and hook_pattern", conditions=both))
        if tap in _OWN_MEMORY or (tap.removeprefix("mlp.") in _OF_MLP and component.kind in ("mlp", "block")):
            steps += _of_results(once, component, spec, is_silent=not is_odd)
    if "attention_mask" in inputs and spec.seq_len > 1:
        unflagged = [tap for tap, flags in taps.items() if not flags]
        steps += _after_a_prefill(unflagged, inputs, spec)
    return tuple(steps)


def _at_once(once: Step, component: Component, spec: InputSpec, *, is_followed: bool) -> Step:
    """Return the forward of a hook, on one sequence, in all settings that it has and that change no arithmetic."""
    conditions = once.conditions
    patch, kind, prefix = conditions.patch, component.kind, component.attention_prefix
    assert isinstance(patch, Patch)
    # Given a strided input, torch adds the bias of a Linear in another operation, and rounds once more.
    strided = kind == "attn" or spec.dtype not in HALVES
    large = not patch.tap.endswith("in.hook_out")  # whose third power overflows in float16
    changed = replace(
        conditions, patch=replace(patch, strided=strided, large=large, removes_itself=True, is_followed=is_followed)
    )
    if kind in ("attn", "mlp", "block"):
        changed = replace(changed, dropout=0.0, random_state=spec.seed)
    if kind in ("attn", "block") and patch.tap != f"{prefix}o.hook_out":
        changed = replace(changed, flags=tuple(dict.fromkeys((*conditions.flags, FLAG_RESULT))))
    if (second := _later(patch.tap, component)) is not None:
        changed = replace(changed, second_patch=Patch(second, spec.seed))
    return replace(once, name=f"{patch.tap} in settings", conditions=changed)


def _of_results(once: Step, component: Component, spec: InputSpec, *, is_silent: bool) -> Iterator[Step]:
    """Yield the forwards of a hook on the result of an operation: an edit in place, and, if it is eager, autocast.

    Stages of attention under autocast are those with a cache.
    """
    conditions = once.conditions
    assert isinstance(conditions.patch, Patch)
    tap, edit = conditions.patch.tap, replace(conditions.patch, edits=True, is_silent=is_silent)
    name = f"{tap} edited{' and not returned' if is_silent else ''}"
    yield replace(once, name=name, conditions=replace(conditions, patch=edit))
    if spec.attention == EAGER:
        cache = f"{tap} autocast" if component.kind in ("attn", "block") else None
        under = replace(conditions, autocast=autocast_dtypes(spec.dtype)[0])
        yield replace(once, name=f"{tap} autocast", conditions=under, cache=cache)


def _later(tap: str, component: Component) -> str | None:
    """Return a later tap that a second hook can replace; None if there is none, or if nothing between is judged."""
    if tap == "hook_v":
        return "hook_pattern"
    seconds = {"attn": ("hook_z",), "mlp": ("out.hook_in", "hook_out"), "block": ("mlp.hook_out", "hook_out")}
    order = [stage.tap for stage in component.stages(False) if stage.required]
    if tap not in order:
        return None
    return next((each for each in seconds.get(component.kind, ()) if order.index(each) > order.index(tap) + 1), None)


def _after_a_prefill(taps: Sequence[str], inputs: Inputs, spec: InputSpec) -> Iterator[Step]:
    """Yield forwards of the last token, each patched at a tap, with the tokens before it in a cache.

    All of them go through one cache, from which they are dropped again. The prefill is not judged.
    """
    start = spec.seq_len - 1
    yield Step("prefill", slice_tokens(inputs, slice(0, start)), cache="all")
    last, crop = slice_tokens(inputs, slice(start, None)), partial(_crop, start)
    for tap in taps:
        patched = Conditions(gradients=True, patch=Patch(tap, spec.seed))
        yield Step(f"{tap} with a cache", last, patched, cache="all", change_cache=crop)


def _crop(length: int, cache: Any) -> None:
    """Drop all cached tokens but the first ones."""
    cached = max((layer.keys.shape[-2] for layer in cache.layers if layer.is_initialized), default=0)
    if cached > length:
        cache.crop(length - cached)
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    conditions = step.conditions
    if conditions.patch is None:
        return ()
    stages = component.stages(step.cache is not None)
    if conditions.flags:
        stages = gated.stages(component, conditions.flags)
    second = conditions.second_patch
    after = stages_after_replacing(conditions.patch.tap, stages, component.kind, second.tap if second else None)
    return after if conditions.autocast is None else under_autocast(after, conditions.autocast)


CASE = Case(transform=leave_unchanged, steps=_steps, stages=_stages)
