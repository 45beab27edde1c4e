"""`gated`: hooks that a flag of the bridge's config turns on. A forward for each flag that a component has.

| flag | hooks of attention that must exist, all `[batch, seq, heads, d_model]` | what then leads on |
|---|---|---|
| `use_attn_result` | `hook_result` | the output is the sum of the heads' results |
| `use_split_qkv_input` | `hook_q_input`, `hook_k_input`, `hook_v_input` | each head projects its own copy |
| `use_attn_in` | `hook_attn_in` | likewise, from one copy for q, k and v |

The copies are made before ln1 in a block, which then normalizes each of them. The last two flags exclude each other.
A block has `use_hook_mlp_in` as well: the residual forks into `hook_mlp_in`, and what that returns is normalized for
the MLP. It need not fire.
Hugging Face has none of this and runs plainly: sums have another order, so the output holds its bound, not the bits.
Only this case sees a flag without effect, heads in the wrong order, a result that is not what is summed, a copy that is
taken after ln1 or normalized twice. The inputs are those of `stress`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import Inputs, InputSpec, Step
from cgverify.observe.stages import HEADS, RESIDUAL, Stage, TapFunction, TensorsByName, copy
from cgverify.oracle.arithmetic import Expected, exact_input, exact_output
from cgverify.oracle.layer_norm import layer_norm
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.per_head import head_projections, head_results, head_sum, unseen_head_sum

RESULT = "use_attn_result"
SPLIT = "use_split_qkv_input"
SHARED = "use_attn_in"
MLP_IN = "use_hook_mlp_in"


def hooks(kind: str) -> dict[str, tuple[str, ...]]:
    """What each flag turns on, by the taps of a kind of component."""
    of_attention = {
        RESULT: ("hook_result",),
        SPLIT: ("hook_q_input", "hook_k_input", "hook_v_input"),
        SHARED: ("hook_attn_in",),
    }
    if kind == "attn":
        return of_attention
    if kind == "block":
        in_block = {flag: tuple(f"attn.{hook}" for hook in own) for flag, own in of_attention.items()}
        return in_block | {MLP_IN: ("hook_mlp_in",)}
    return {}


@dataclass(frozen=True)
class _Place:
    """Where attention stands: by itself, or in a block behind its layer norm."""

    prefix: str
    residual: str
    """The tap that is copied for each head."""
    norm: str | None
    """The layer norm that the copies go through."""


_ALONE = _Place(prefix="", residual="hook_in", norm=None)
_IN_BLOCK = _Place(prefix="attn.", residual="hook_in", norm="ln1")


def _steps(component: Component, inputs: Inputs, _: InputSpec) -> tuple[Step, ...]:
    return tuple(Step(flag, inputs, Conditions(flags=(flag,))) for flag in hooks(component.kind))


def stages(component: Component, flag: str) -> tuple[Stage, ...]:
    """The stages of attention or of a block under a flag."""
    place = _IN_BLOCK if component.kind == "block" else _ALONE
    change = {RESULT: _summed, MLP_IN: _forked_for_mlp}.get(flag, _forked)
    return tuple(change(component.stages(False), place, flag))


def _forked_for_mlp(plain: tuple[Stage, ...], place: _Place, _: str) -> Iterator[Stage]:
    """The MLP's branch, from its own copy of the residual where there is one."""

    def into_mlp(side: TensorsByName, parameters: Parameters) -> Expected:
        copied = side.get("hook_mlp_in")
        if copied is None:
            return exact_output(side["ln1.hook_out"], side["ln1.hook_out"].dtype)
        gain, bias = parameters.tensor("ln1"), parameters.required_bias("ln1")
        return layer_norm(copied, gain, bias, parameters.eps)

    for stage in plain:
        if stage.tap == "mlp.hook_in":
            yield copy("fork", "hook_mlp_in", place.residual, RESIDUAL, required=False)
            yield Stage("layer_norm", stage.tap, TapFunction(into_mlp), RESIDUAL)
        else:
            yield stage


def _summed(plain: tuple[Stage, ...], place: _Place, _: str) -> Iterator[Stage]:
    """The output as the sum of what each head gives."""
    z, result = f"{place.prefix}hook_z", f"{place.prefix}hook_result"

    def given(side: TensorsByName, parameters: Parameters) -> Expected:
        return head_results(exact_input(side[z]), parameters.tensor("attn.o"), parameters.shortcuts)

    def summed(side: TensorsByName, parameters: Parameters) -> Expected:
        if (seen := side.get(result)) is not None:
            return head_sum(exact_input(seen))
        return unseen_head_sum(exact_input(side[z]), parameters.tensor("attn.o"), parameters.shortcuts)

    for stage in plain:
        if stage.tap == f"{place.prefix}o.hook_out":  # heads are not multiplied together
            yield Stage("result", result, TapFunction(given), HEADS)
        elif stage.tap == f"{place.prefix}hook_out":
            yield Stage("result_sum", stage.tap, TapFunction(summed), RESIDUAL)
        else:
            yield stage


def _forked(plain: tuple[Stage, ...], place: _Place, flag: str) -> Iterator[Stage]:
    """The projections, each head's from its own copy of the residual."""
    inputs = {w: f"{place.prefix}{'hook_attn_in' if flag == SHARED else f'hook_{w}_input'}" for w in "qkv"}

    def copied(side: TensorsByName, parameters: Parameters) -> Expected:
        residual = side[place.residual]
        heads = parameters.n_heads
        return exact_output(residual.unsqueeze(-2).expand(*residual.shape[:-1], heads, -1), residual.dtype)

    def projected(w: str) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            seen = side.get(inputs[w])
            copies = exact_input(seen) if seen is not None else copied(side, parameters)
            if place.norm is not None:
                gain, bias = parameters.tensor(place.norm), parameters.required_bias(place.norm)
                copies = layer_norm(copies.value.to(copies.dtype), gain, bias, parameters.eps)
            return head_projections(copies, parameters.tensor(f"attn.{w}"), parameters.shortcuts)

        return TapFunction(compute)

    for stage in plain:
        w = stage.name.removeprefix("project_")
        if w not in inputs:
            yield stage
            continue
        if w == "q" or flag == SPLIT:
            yield Stage("fork", inputs[w], TapFunction(copied), HEADS)
        yield Stage(stage.name, stage.tap, projected(w), HEADS)


CASE = Case(bend=lambda stress: stress, steps=_steps, stages=lambda component, step: stages(component, step.name))
