"""`gated`: hooks that a flag of the bridge's config turns on. For each flag of a component there is one forward, and
then a prefill and one token with `use_attn_result` on as well, which go through a cache; the token has autograd on.

| flag | hooks of attention that must exist, all `[batch, seq, heads, d_model]` | what follows from them |
|---|---|---|
| `use_attn_result` | `hook_result` | the output is the sum of the heads' results |
| `use_split_qkv_input` | `hook_q_input`, `hook_k_input`, `hook_v_input` | each head projects its own copy |
| `use_attn_in` | `hook_attn_in` | each head projects its own copy, the same for q, k and v |

In a block the copies are made before ln1, which then normalizes each of them. The last two flags exclude each other. A
block has `use_hook_mlp_in` as well: the residual is copied to `hook_mlp_in`, and what that hook returns is normalized
for the MLP. That hook need not fire.
Hugging Face has none of this and runs as usual. Sums have another order, so the output is within its bound and not
bitwise equal. Only this case sees a flag without effect, heads in the wrong order, a result that is not what is summed,
a copy that is taken after ln1 or normalized twice. The inputs are those of `stress`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cgverify.observe.cases.case import Case
from cgverify.observe.components import (
    FLAG_MLP_IN,
    FLAG_RESULT,
    FLAGGED_HOOKS,
    Component,
)
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import Inputs, InputSpec, Step, slice_tokens
from cgverify.observe.stages import HEADS, RESIDUAL, Stage, TapFunction, TensorsByName, copy
from cgverify.oracle.arithmetic import Expected, exact_input, exact_output
from cgverify.oracle.layer_norm import layer_norm
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.per_head import head_projections, head_results, head_sum, unseen_head_sum


def _steps(component: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    flags = FLAGGED_HOOKS.get(component.kind, {})
    once = [Step(flag, inputs, Conditions(flags=(flag,))) for flag in flags]
    start = spec.seq_len - 1
    if not start:
        return tuple(once)
    before, last = slice_tokens(inputs, slice(0, start)), slice_tokens(inputs, slice(start, None))
    for flag in flags:
        both = Conditions(flags=tuple(dict.fromkeys((flag, FLAG_RESULT))), gradients=True)
        once += [
            Step(f"{flag} prefill", before, replace(both, gradients=False), cache=flag),
            Step(f"{flag} with a cache", last, both, cache=flag),
        ]
    return tuple(once)


def stages(component: Component, flags: Sequence[str], with_cache: bool = False) -> tuple[Stage, ...]:
    """The stages of attention or of a block under flags."""
    changed = component.stages(with_cache)
    for flag in flags:
        if flag == FLAG_RESULT:
            changed = tuple(_with_results(changed, component.attention_prefix))
        elif flag == FLAG_MLP_IN:
            changed = tuple(_with_mlp_copy(changed))
        else:
            hooks = FLAGGED_HOOKS[component.kind][flag]  # one for q, k and v, or one for each
            taps = dict(zip("qkv", hooks * (3 // len(hooks)), strict=True))
            changed = tuple(_with_copies(changed, taps, "ln1" if component.kind == "block" else None))
    return changed


def _with_mlp_copy(plain: tuple[Stage, ...]) -> Iterator[Stage]:
    """The block's stages with the MLP's input from its own copy of the residual, if the hook fires."""

    def into_mlp(side: TensorsByName, parameters: Parameters) -> Expected:
        copied = side.get("hook_mlp_in")
        if copied is None:
            return exact_output(side["ln1.hook_out"], side["ln1.hook_out"].dtype)
        return layer_norm(copied, *parameters.gain_and_bias("ln1"), parameters.eps)

    for stage in plain:
        if stage.tap == "mlp.hook_in":
            yield replace(copy("fork", "hook_mlp_in", "hook_in", RESIDUAL, required=False), shown_with=())
            yield Stage("layer_norm", stage.tap, TapFunction(into_mlp), RESIDUAL)
        else:
            yield stage


def _with_results(plain: tuple[Stage, ...], prefix: str) -> Iterator[Stage]:
    """The stages with the output as the sum of each head's result."""
    z, result = f"{prefix}hook_z", f"{prefix}hook_result"

    def results(side: TensorsByName, parameters: Parameters) -> Expected:
        return head_results(exact_input(side[z]), parameters.tensor("attn.o"), parameters.shortcuts)

    def summed(side: TensorsByName, parameters: Parameters) -> Expected:
        if (seen := side.get(result)) is not None:
            return head_sum(exact_input(seen))
        return unseen_head_sum(exact_input(side[z]), parameters.tensor("attn.o"), parameters.shortcuts)

    for stage in plain:
        if stage.tap == f"{prefix}o.hook_out":  # heads are not multiplied together
            yield Stage("result", result, TapFunction(results), HEADS, shown_with=())
        elif stage.tap == f"{prefix}hook_out":
            yield Stage("result_sum", stage.tap, TapFunction(summed), RESIDUAL)
        else:
            yield stage


def _with_copies(plain: tuple[Stage, ...], taps: dict[str, str], norm: str | None) -> Iterator[Stage]:
    """The stages with projections in which each head has its own copy of the component's input.

    Args:
        taps: by q, k and v: the tap of the copies.
        norm: the layer norm that the copies go through before the projection, if any.
    """

    def copied(side: TensorsByName, parameters: Parameters) -> Expected:
        residual = side["hook_in"]
        return exact_output(residual.unsqueeze(-2).expand(*residual.shape[:-1], parameters.n_heads, -1), residual.dtype)

    def projected(w: str) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            seen = side.get(taps[w])
            copies = exact_input(seen) if seen is not None else copied(side, parameters)
            if norm is not None:
                narrow = copies.value.to(copies.dtype)
                copies = layer_norm(narrow, *parameters.gain_and_bias(norm), parameters.eps)
            return head_projections(copies, parameters.tensor(f"attn.{w}"), parameters.shortcuts)

        return TapFunction(compute)

    forked = set()
    for stage in plain:
        w = stage.name.removeprefix("project_")
        if w not in taps:
            yield stage
            continue
        if taps[w] not in forked:
            forked.add(taps[w])
            yield Stage("fork", taps[w], TapFunction(copied), HEADS, shown_with=())
        yield Stage(stage.name, stage.tap, projected(w), HEADS)


CASE = Case(
    steps=_steps, stages=lambda component, step: stages(component, step.conditions.flags, step.cache is not None)
)
