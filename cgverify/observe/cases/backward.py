"""`backward`: gradients of sum(output · G), with G drawn from the seed, in the hidden states and in every weight.

Both sides run with autograd on. Only this case detects what a forward does not show: a tensor that is detached, a
gradient that is scaled, goes through a wrong transpose, or skips the softmax. Hugging Face adds up q, k and v in one
product where a bridge with separate weights adds three, so gradients are within bounds and not always bitwise equal.
The oracle is the float64 gradient with a sampled spread of correct arithmetic (`cgverify/oracle/gradient.py`). Each
gradient is judged element by element, and slice by slice for a common factor. Positions and mask are those of `stress`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cgverify.common.records import EAGER
from cgverify.observe.bits import same_tensor
from cgverify.observe.cases.case import Case, one_forward
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions, Cotangent
from cgverify.observe.generations import installed
from cgverify.observe.gradients import modules_with_gradients
from cgverify.observe.inputs import LOWEST, Inputs, InputSpec, Step, stress_context
from cgverify.observe.stages import RESIDUAL, Stage, TapFunction, TensorsByName
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.forward import FORWARDS, Context
from cgverify.oracle.gradient import Gradient, gradients
from cgverify.oracle.monte_carlo import Roundings, gradient_stored
from cgverify.oracle.parameters import Parameters

INPUT = "hidden_states"
_BY_HEAD = ("attn.q", "attn.k", "attn.v")


def leaves(kind: str) -> tuple[str, ...]:
    """Return what a component has gradients in: the hidden states, and weights by the names of `Parameters`."""
    names = [INPUT]
    for module in modules_with_gradients(kind):
        names += [module, f"{module}.bias"] if module.startswith(("ln1", "mlp")) else [module]
    return tuple(names)


def _axes(leaf: str) -> tuple[str, ...]:
    if leaf == INPUT:
        return RESIDUAL
    if leaf in _BY_HEAD:
        return ("head", "dimension", "input")
    return ("dimension",) if leaf == "ln1" or leaf.endswith(".bias") else ("row", "column")


def _transform(inputs: Inputs, spec: InputSpec) -> Inputs:
    if "position_ids" not in inputs:
        return inputs
    inputs = stress_context(inputs, spec)
    if spec.attention != EAGER:
        # The gradient of torch's fused kernel is wrong for a query whose keys are all hidden by finite values: it
        # normalizes by log(n) + mask, which is the mask. The model itself hides keys from that kernel with −∞.
        own = inputs["attention_mask"].diagonal(dim1=-2, dim2=-1)
        own.masked_fill_(own <= LOWEST, 0)
    return inputs


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    cotangent = step.conditions.cotangent
    assert cotangent is not None
    known: list[tuple[torch.Tensor, dict[str, Gradient]]] = []

    def gradient(name: str, side: TensorsByName, parameters: Parameters) -> Gradient:
        """Return a gradient from one computation for all stages and for both sides, which have equal inputs."""
        given = side[f"given.{INPUT}"]
        if not known or not same_tensor(known[0][0], given):
            known[:] = [(given, _gradients(component.kind, side, parameters, cotangent))]
        return known[0][1][name]

    def stages_of(name: str) -> tuple[Stage, Stage]:
        tap, axes = f"grad.{name}", _axes(name)

        def elements(side: TensorsByName, parameters: Parameters) -> Expected:
            return gradient(name, side, parameters).elements()

        def scale(side: TensorsByName, parameters: Parameters) -> Expected:
            return gradient(name, side, parameters).scale(side[tap])

        return (
            Stage("gradient", tap, TapFunction(elements), axes),
            Stage("gradient_scale", tap, TapFunction(scale), axes, meaning="all of a slice is too large or small"),
        )

    return tuple(stage for name in leaves(component.kind) for stage in stages_of(name))


def _gradients(kind: str, side: TensorsByName, parameters: Parameters, cotangent: Cotangent) -> dict[str, Gradient]:
    given = side[f"given.{INPUT}"]
    weights = {name: _weight(name, parameters) for name in leaves(kind) if name != INPUT}

    def run(wide: Mapping[str, torch.Tensor], roundings: Roundings) -> torch.Tensor:
        context = Context(
            dtype=given.dtype,
            roundings=roundings,
            scores=installed().sampled_scores,
            n_heads=parameters.n_heads,
            eps=parameters.eps,
            table=parameters.tensor("attn.table"),
            position_ids=side.get("given.position_ids"),
            mask=side.get("given.attention_mask"),
        )
        return FORWARDS[kind](gradient_stored(wide[INPUT], given.dtype, roundings), wide, context)

    def slices(name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.unflatten(0, (parameters.n_heads, -1)) if name in _BY_HEAD else gradient

    width = len(weights[kind]) if kind in ("mlp.in", "mlp.out") else given.shape[-1]
    drawn = cotangent(given.new_empty(*given.shape[:-1], width))
    return gradients(run, {INPUT: given, **weights}, drawn, slices, parameters.shortcuts)


def _weight(name: str, parameters: Parameters) -> torch.Tensor:
    module = name.removesuffix(".bias")
    return parameters.tensor(name) if module == name else parameters.required_bias(module)


def _conditions(spec: InputSpec) -> Conditions:
    return Conditions(gradients=True, cotangent=Cotangent(spec.seed))


CASE = Case(transform=_transform, steps=one_forward("backward", _conditions), stages=_stages)
