"""`patched`: every hook in turn returns another tensor, and what comes next must have used it.

People use hooks to intervene; a hook that only shows is half a hook. One forward for each hook of attention (under its
flag for those that have one), MLP, embeddings, norms and unembedding, and for those of the block around them: residual
stream, layer norm, what attention and MLP take and give. Attention and block go through a second one for each hook that
needs no flag, behind a prefill, with autograd on. What a hook returns is drawn from the seed and has nothing to do with
what it was shown. It then stands for the tap: the stage that made it is not judged, all later ones are, from what was
returned on, and by their bounds alone, since Hugging Face has no hooks and computes with other tensors. Only this case
sees a return value that is ignored, used in part (some heads, the values but not the returned pattern), or used
elsewhere too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from cgverify.observe.cases import gated
from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions, Patch
from cgverify.observe.inputs import Inputs, InputSpec, Step, leave_unchanged, slice_tokens
from cgverify.observe.stages import Oracle, Stage, TapFunction, TensorsByName, WeightProduct
from cgverify.oracle.arithmetic import Expected, exact_input, exact_output
from cgverify.oracle.fused_qkv import part_of
from cgverify.oracle.layer_norm import affine, normalized_by
from cgverify.oracle.parameters import Parameters

IN_BLOCK = ("hook_in", "ln1.", "attn.hook_in", "attn.hook_out", "mlp.", "hook_out")
"""What is patched in a block; the rest of attention is patched where it stands by itself."""


def hooks(component: Component) -> dict[str, tuple[str, ...]]:
    """The taps that are patched, in the order of the computation, each with the flags that it needs."""
    taps = [stage.tap for stage in component.stages(False) if not stage.tap.startswith("returned")]
    if component.kind == "block":
        taps = [tap for tap in taps if tap.startswith(IN_BLOCK)]
    plain: dict[str, tuple[str, ...]] = dict.fromkeys(taps, ())
    return plain | {hook: (flag,) for flag, own in gated.hooks(component.kind).items() for hook in own}


def _steps(component: Component, inputs: Inputs, recipe: InputSpec) -> tuple[Step, ...]:
    taps = hooks(component)
    once = [Step(tap, inputs, Conditions(flags=flags, patch=Patch(tap, recipe.seed))) for tap, flags in taps.items()]
    if "attention_mask" not in inputs or recipe.seq_len < 2:
        return tuple(once)
    unflagged = [tap for tap, flags in taps.items() if not flags]
    return (*once, *(step for tap in unflagged for step in _behind_a_prefill(tap, inputs, recipe)))


def _behind_a_prefill(tap: str, inputs: Inputs, recipe: InputSpec) -> Iterator[Step]:
    """Half of the tokens, of which nothing is asked, and the others with a patch."""
    half = recipe.seq_len // 2
    patched = Conditions(gradients=True, patch=Patch(tap, recipe.seed))
    yield Step(f"{tap} prefill", slice_tokens(inputs, slice(0, half)), cache=tap)
    yield Step(f"{tap} with a cache", slice_tokens(inputs, slice(half, None)), patched, cache=tap)


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    patch, flags = step.conditions.patch, step.conditions.flags
    if patch is None:
        return ()
    stages = gated.stages(component, *flags) if flags else component.stages(step.cache is not None)
    return after(patch.tap, stages, component.kind)


def after(tap: str, stages: tuple[Stage, ...], kind: str) -> tuple[Stage, ...]:
    """What a forward of a kind of component is judged by if another tensor stands for a tap: the stages from it on."""
    return tuple(_from(tap, stages, _next_steps(kind).get(tap, {})))


def _from(tap: str, stages: tuple[Stage, ...], next_steps: Mapping[str, Oracle]) -> Iterator[Stage]:
    """The stages from a patched tap on; other taps need not exist, which other cases ask for."""
    start = next(place for place, stage in enumerate(stages) if stage.tap == tap)
    yield Stage("patched", tap, _same(tap), stages[start].axes, stages[start].required)
    for stage in stages[start + 1 :]:
        yield replace(stage, oracle=next_steps.get(stage.tap, stage.oracle), required=False)


def _next_steps(kind: str) -> dict[str, dict[str, Oracle]]:
    """Where a stage of the table starts from a tap further back: the single steps from patched taps to the next."""
    attn, mlp = ("attn.", "mlp.") if kind == "block" else ("", "")
    output, hidden = f"{attn}o.hook_out", f"{attn}hook_hidden_states"
    fused_in, fused_out = f"{attn}qkv.hook_in", f"{attn}qkv.hook_out"

    def part(w: str) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            own = part_of(side[fused_out], w, parameters.n_heads)
            return exact_output(own, own.dtype)

        return TapFunction(compute)

    of_attention: dict[str, dict[str, Oracle]] = {
        fused_in: {
            **{f"{attn}{w}.hook_in": _same(fused_in) for w in "qkv"},
            **{f"{attn}hook_{w}": WeightProduct(fused_in, f"attn.{w}") for w in "qkv"},
        },
        fused_out: {f"{attn}hook_{w}": part(w) for w in "qkv"},
        **{f"{attn}{w}.hook_in": {f"{attn}hook_{w}": WeightProduct(f"{attn}{w}.hook_in", f"attn.{w}")} for w in "qkv"},
        output: {f"{attn}hook_out": _same(output), hidden: _same(output)},
        hidden: {f"{attn}hook_out": _same(hidden)},
    }
    of_mlp: dict[str, dict[str, Oracle]] = {
        f"{mlp}in.hook_in": {f"{mlp}in.hook_out": WeightProduct(f"{mlp}in.hook_in", "mlp.in")},
        f"{mlp}out.hook_out": {f"{mlp}hook_out": _same(f"{mlp}out.hook_out")},
    }

    of_block = of_attention | of_mlp | _of_norm("ln1.", "ln1")
    of_kind: dict[str, dict[str, dict[str, Oracle]]] = {
        "attn": of_attention,
        "mlp": of_mlp,
        "block": of_block,
        "unembed": {"hook_out": {"returned": _same("hook_out")}},
        **{norm: _of_norm("", norm) for norm in ("ln1", "ln_final")},
    }
    return of_kind.get(kind, {})


def _of_norm(prefix: str, weight: str) -> dict[str, dict[str, Oracle]]:
    """Those of a layer norm, hooks under `prefix`."""
    into, out = f"{prefix}hook_in", f"{prefix}hook_out"
    scale, normalized = f"{prefix}hook_scale", f"{prefix}hook_normalized"

    def scaled(side: TensorsByName, _: Parameters) -> Expected:
        return normalized_by(side[into], side[scale])

    def with_gain_and_bias(x_hat: Callable[[TensorsByName, Parameters], Expected]) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            gain, bias = parameters.tensor(weight), parameters.required_bias(weight)
            return affine(x_hat(side, parameters), gain, bias, side[into].dtype)

        return TapFunction(compute)

    return {
        scale: {normalized: TapFunction(scaled), out: with_gain_and_bias(scaled)},
        normalized: {out: with_gain_and_bias(lambda side, _: exact_input(side[normalized]))},
    }


def _same(tap: str) -> TapFunction:
    return TapFunction(lambda side, _: exact_output(side[tap], side[tap].dtype))


CASE = Case(bend=lambda _: leave_unchanged, steps=_steps, stages=_stages)
