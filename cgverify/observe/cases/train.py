"""`train`: training mode with dropout p = 0.1 in attention and on both residual branches, from one random state.

Both sides draw from equal random states, so the same elements must be kept. That needs the same dropouts in the same
order on tensors of the same memory layout: the random numbers follow the memory, not the indices. Only this case sees
a dropout that is missing, applied twice, drawn in another order or from another state, scaled wrongly, or applied
where the reference has none. p is set on the modules (`attn_dropout`, `resid_dropout`, `mlp.dropout`), since Hugging
Face reads those and not the config.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cgverify.observe.cases.case import Case, each_stage, one_forward
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import leave_unchanged
from cgverify.observe.stages import Compute, Oracle, Stage, TapFunction, TensorsByName, WeightProduct
from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.dropout import dropout
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.product import product

P = 0.1

_MEANING = "dropout is missing, keeps other elements than the reference's, or scales them differently"


def _shared(taps: TensorsByName) -> dict[str, torch.Tensor]:
    """The elements that dropout kept: where the reference's taps after a dropout are not 0."""
    return {_kept(name): tap != 0 for name, tap in taps.items() if name.endswith(("hook_pattern", "hook_out"))}


def _kept(tap: str) -> str:
    return f"given.kept.{tap}"


def _with_dropout(stage: Stage, component: Component) -> Stage:
    """The stage followed by dropout, if CodeGen has one there."""
    attention, mlp = ("attn.", "mlp.") if component.kind == "block" else ("", "")
    if stage.name == "softmax" and isinstance(stage.oracle, TapFunction):
        return _followed_by_dropout(stage, "attn_dropout", stage.oracle.compute)
    if stage.name == "output" and stage.tap == f"{attention}hook_out":
        return _followed_by_dropout(stage, "resid_dropout", _before_dropout(f"{attention}o.hook_out", stage.oracle))
    if stage.name == "mlp_out" and stage.tap == f"{mlp}hook_out":
        return _followed_by_dropout(stage, "resid_dropout", _before_dropout(f"{mlp}out.hook_out", stage.oracle))
    return stage


def _followed_by_dropout(stage: Stage, name: str, before: Compute) -> Stage:
    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return dropout(before(side, parameters), side[_kept(stage.tap)], P)

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


CASE = Case(
    transform=leave_unchanged,
    steps=one_forward(conditions=lambda spec: Conditions(dropout=P, random_state=spec.seed)),
    stages=each_stage(_with_dropout),
    shared=_shared,
)
