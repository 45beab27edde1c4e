"""`patched`: each hook in turn returns another tensor, and every later operation must have used it.

People use hooks to intervene; a hook that only shows a tensor is half a hook. There is one forward for each hook of
attention (with its flag on, if it has one), MLP, embeddings, norms and unembedding, and for the block's own hooks:
residual stream, layer norm, inputs and outputs of attention and MLP. Attention and block have a second forward for each
hook without a flag, after a prefill and with autograd on. The returned tensor is drawn from the seed and is unrelated
to the one that the hook received. The stage that made the tap is not judged. All later stages are, from the returned
tensor on, and only by their bounds, since Hugging Face has no hooks and computes with other tensors. Only this case
sees a return value that is ignored, used in part (some heads; the values but not the returned pattern), or used in
other places too.
"""

from __future__ import annotations

from collections.abc import Iterator

from cgverify.observe.cases import gated
from cgverify.observe.cases.case import Case
from cgverify.observe.components import FLAGGED_HOOKS, Component
from cgverify.observe.conditions import Conditions, Patch
from cgverify.observe.inputs import Inputs, InputSpec, Step, leave_unchanged, slice_tokens
from cgverify.observe.replacement import stages_after_replacing
from cgverify.observe.stages import Stage

IN_BLOCK = ("hook_in", "ln1.", "attn.hook_in", "attn.hook_out", "mlp.", "hook_out")
"""Prefixes of the taps that are patched in a block. The other hooks of attention are patched in attention alone."""


def patched_taps(component: Component) -> dict[str, tuple[str, ...]]:
    """The taps that are patched, in the order of the computation, each with the flags that it needs."""
    taps = [stage.tap for stage in component.stages(False) if not stage.tap.startswith("returned")]
    if component.kind == "block":
        taps = [tap for tap in taps if tap.startswith(IN_BLOCK)]
    unflagged: dict[str, tuple[str, ...]] = dict.fromkeys(taps, ())
    return unflagged | {tap: (flag,) for flag, own in FLAGGED_HOOKS.get(component.kind, {}).items() for tap in own}


def _steps(component: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    taps = patched_taps(component)
    once = [Step(tap, inputs, Conditions(flags=flags, patch=Patch(tap, spec.seed))) for tap, flags in taps.items()]
    if "attention_mask" not in inputs or spec.seq_len < 2:
        return tuple(once)
    unflagged = [tap for tap, flags in taps.items() if not flags]
    return (*once, *(step for tap in unflagged for step in _after_a_prefill(tap, inputs, spec)))


def _after_a_prefill(tap: str, inputs: Inputs, spec: InputSpec) -> Iterator[Step]:
    """Half of the tokens, which are not judged, then the other half with a patch."""
    half = spec.seq_len // 2
    patched = Conditions(gradients=True, patch=Patch(tap, spec.seed))
    yield Step(f"{tap} prefill", slice_tokens(inputs, slice(0, half)), cache=tap)
    yield Step(f"{tap} with a cache", slice_tokens(inputs, slice(half, None)), patched, cache=tap)


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    patch, flags = step.conditions.patch, step.conditions.flags
    if patch is None:
        return ()
    stages = gated.stages(component, *flags) if flags else component.stages(step.cache is not None)
    return stages_after_replacing(patch.tap, stages, component.kind)


CASE = Case(transform=leave_unchanged, steps=_steps, stages=_stages)
