"""`train`: training mode with dropout p = 0.1 in attention and on both residual branches, from one random state.

Both sides draw from the same state, so that the same elements must be kept. That needs the same dropouts in the same
order on tensors of the same memory layout: the random numbers follow the memory, not the indices. Only this case sees
a dropout that is missing, applied twice, drawn in another order or from another state, scaled wrongly, or applied
where the reference has none. p is set on the modules (`attn_dropout`, `resid_dropout`, `mlp.dropout`), since Hugging
Face asks those and not the config.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import Inputs, InputSpec, Step, leave_unchanged
from cgverify.observe.stages import Stage, TapFunction, TensorsByName, WeightProduct
from cgverify.oracle.arithmetic import Expected, exact_input
from cgverify.oracle.dropout import dropout
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.product import product

P = 0.1

_ANOTHER = "dropout is missing, keeps other elements than the reference's, or scales them otherwise"


def _steps(_: Component, inputs: Inputs, recipe: InputSpec) -> tuple[Step, ...]:
    return (Step("forward", inputs, Conditions(dropout=P, random_state=recipe.seed)),)


def _shared(taps: TensorsByName) -> dict[str, torch.Tensor]:
    """Where the reference's taps that dropout made are not 0."""
    names = ("hook_pattern", "hook_out")
    return {_kept(name): tap != 0 for name, tap in taps.items() if name.endswith(names)}


def _kept(tap: str) -> str:
    return f"given.kept.{tap}"


def _stages(component: Component, _: Step) -> tuple[Stage, ...]:
    return tuple(_dropped(stage, component.kind) for stage in component.stages(False))


def _dropped(stage: Stage, kind: str) -> Stage:
    """The same stage with the dropout behind it, where there is one."""
    attention, mlp = ("attn.", "mlp.") if kind == "block" else ("", "")
    if stage.name == "softmax" and isinstance(stage.oracle, TapFunction):
        return _after(stage, "attn_dropout", stage.oracle)
    if stage.name == "output" and stage.tap == f"{attention}hook_out":
        return _after(stage, "resid_dropout", _seen_or_multiplied(f"{attention}o.hook_out", stage.oracle))
    if stage.name == "mlp_out" and stage.tap == f"{mlp}hook_out":
        return _after(stage, "resid_dropout", _seen_or_multiplied(f"{mlp}out.hook_out", stage.oracle))
    return stage


def _after(stage: Stage, name: str, before: TapFunction) -> Stage:
    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return dropout(before.compute(side, parameters), side[_kept(stage.tap)], P)

    return replace(stage, name=name, oracle=TapFunction(compute), meaning=_ANOTHER)


def _seen_or_multiplied(tap: str, oracle: object) -> TapFunction:
    """What dropout was given: the tap before it, or the product where that never fired."""
    assert isinstance(oracle, WeightProduct)

    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        if (seen := side.get(tap)) is not None:
            return exact_input(seen)
        x = exact_input(side[oracle.input].flatten(2))
        return product(x, parameters.tensor(oracle.weight), parameters.bias(oracle.weight), parameters.shortcuts)

    return TapFunction(compute)


CASE = Case(bend=lambda _: leave_unchanged, steps=_steps, stages=_stages, shared=_shared)
