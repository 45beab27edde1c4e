"""`train`: dropout p = 0.1 of the pattern and 0.25 on both residual branches, from one random state.

| step | mode | |
|---|---|---|
| `eval` | eval | nothing may be dropped, whatever the rates are |
| `forward` | training | after a forward in eval mode, whose mode must not be kept |
| `with a cache` | training, with autograd | the second half of the tokens, after a prefill in eval mode |
| `use_attn_result`, … | training | one forward for each flag of the component |

Both sides draw from equal random states, so the same elements must be kept. That needs the same dropouts in the same
order on tensors of the same memory layout: the random numbers follow the memory, not the indices. Only this case sees
a dropout that is missing, applied twice, drawn in another order or from another state, scaled wrongly, of another's
rate, or applied where the reference has none or in eval mode. p is set on the modules (`attn_dropout`,
`resid_dropout`, `mlp.dropout`), since Hugging Face reads those and not the config.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cgverify.observe.cases import gated
from cgverify.observe.cases.case import Case
from cgverify.observe.components import FLAGGED_HOOKS, Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import Inputs, InputSpec, Step, leave_unchanged, slice_tokens
from cgverify.observe.stages import Compute, Oracle, Stage, TapFunction, TensorsByName, WeightProduct
from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.dropout import dropout
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.product import product

P_PATTERN, P_RESIDUAL = 0.1, 0.25

_MEANING = "dropout is missing, keeps other elements than the reference's, or scales them differently"


def _steps(component: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    training = Conditions(dropout=P_RESIDUAL, attention_dropout=P_PATTERN, random_state=spec.seed)
    steps = [Step("eval", inputs, replace(training, training=False)), Step("forward", inputs, training)]
    if "attention_mask" in inputs and spec.seq_len > 1:
        half = spec.seq_len // 2
        steps += [
            Step("prefill", slice_tokens(inputs, slice(0, half)), cache="all"),
            Step(
                "with a cache", slice_tokens(inputs, slice(half, None)), replace(training, gradients=True), cache="all"
            ),
        ]
    flags = FLAGGED_HOOKS.get(component.kind, {})
    return (*steps, *(Step(flag, inputs, replace(training, flags=(flag,))) for flag in flags))


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    conditions = step.conditions
    plain = component.stages(step.cache is not None)
    if conditions.flags:
        plain = gated.stages(component, conditions.flags)
    if conditions.dropout is None or not conditions.training:
        return plain
    return tuple(_with_dropout(stage, component) for stage in plain)


def _shared(taps: TensorsByName) -> dict[str, torch.Tensor]:
    """The elements that dropout kept: where the reference's taps after a dropout are not 0."""
    return {_kept(name): tap != 0 for name, tap in taps.items() if name.endswith(("hook_pattern", "hook_out"))}


def _kept(tap: str) -> str:
    return f"given.kept.{tap}"


def _with_dropout(stage: Stage, component: Component) -> Stage:
    """The stage followed by dropout, if CodeGen has one there."""
    attention, mlp = ("attn.", "mlp.") if component.kind == "block" else ("", "")
    if stage.name == "softmax" and isinstance(stage.oracle, TapFunction):
        return _followed_by_dropout(stage, "attn_dropout", stage.oracle.compute, P_PATTERN)
    if stage.name == "result_sum" and isinstance(stage.oracle, TapFunction):
        return _followed_by_dropout(stage, "resid_dropout", stage.oracle.compute)
    if stage.name == "output" and stage.tap == f"{attention}hook_out":
        return _followed_by_dropout(stage, "resid_dropout", _before_dropout(f"{attention}o.hook_out", stage.oracle))
    if stage.name == "mlp_out" and stage.tap == f"{mlp}hook_out":
        return _followed_by_dropout(stage, "resid_dropout", _before_dropout(f"{mlp}out.hook_out", stage.oracle))
    return stage


def _followed_by_dropout(stage: Stage, name: str, before: Compute, p: float = P_RESIDUAL) -> Stage:
    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return dropout(before(side, parameters), side[_kept(stage.tap)], p)

    return replace(stage, name=name, oracle=TapFunction(compute), meaning=_MEANING)


def _before_dropout(tap: str, oracle: Oracle) -> Compute:
    """The input of dropout: the tap before it, or the expected product if that hook never fired."""
    assert isinstance(oracle, WeightProduct)

    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        if (seen := side.get(tap)) is not None:
            return exact_input(seen)
        x = exact_input(side[oracle.input].flatten(2))
        return product(x, parameters.tensor(oracle.weight), parameters.bias(oracle.weight), parameters.shortcuts)

    return compute


CASE = Case(transform=leave_unchanged, steps=_steps, stages=_stages, shared=_shared)
