"""`backward`: gradients of sum(output · G), with G drawn from the seed, in the hidden states and in every weight.

Both sides run with autograd on. Only this case sees what a forward hides: a detached tensor, a gradient that is scaled,
goes through a wrong transpose, or skips the softmax. Hugging Face adds up q, k and v in one product where a bridge with
separate weights adds three, so gradients are within bounds and not always bitwise equal. The oracle is the float64
gradient with a sampled spread of correct arithmetic (`cgverify/oracle/gradient.py`). Each gradient is judged element by
element, and slice by slice for a common factor. Positions and mask are those of `stress`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from cgverify.observe.bits import same_tensor
from cgverify.observe.cases.case import Case, one_forward
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions, Cotangent
from cgverify.observe.generations import installed
from cgverify.observe.gradients import MODULES
from cgverify.observe.inputs import Inputs, InputSpec, Step, stress_context
from cgverify.observe.stages import RESIDUAL, Stage, TapFunction, TensorsByName
from cgverify.oracle import forward
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.gradient import Gradient, gradients
from cgverify.oracle.monte_carlo import Roundings, arriving
from cgverify.oracle.parameters import Parameters

INPUT = "hidden_states"


def _linear(kind: str) -> Callable[[torch.Tensor, Mapping[str, torch.Tensor], forward.Setting], torch.Tensor]:
    return lambda x, weights, setting: forward.linear(x, kind, weights, setting)


_FORWARDS: dict[str, Callable[[torch.Tensor, Mapping[str, torch.Tensor], forward.Setting], torch.Tensor]] = {
    "ln1": lambda x, weights, setting: forward.norm(x, "ln1", weights, setting),
    "attn": forward.attention,
    "mlp": forward.mlp,
    "block": forward.block,
    **{kind: _linear(kind) for kind in ("attn.o", "mlp.in", "mlp.out")},
}

_AXES = {
    **{f"attn.{w}": ("head", "dimension", "input") for w in "qkv"},
    INPUT: RESIDUAL,
}


def leaves(kind: str) -> tuple[str, ...]:
    """What a component has gradients in: the hidden states, and weights by the names of `Parameters`."""
    names = [INPUT]
    for module in MODULES[kind]:
        names += [f"attn.{w}" for w in "qkv"] if module == "attn.qkv" else [module]
        names += [f"{module}.bias"] if module.startswith(("ln1", "mlp")) else []
    return tuple(names)


def _transform(inputs: Inputs, spec: InputSpec) -> Inputs:
    return stress_context(inputs, spec) if "position_ids" in inputs else inputs


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    cotangent = step.conditions.cotangent
    assert cotangent is not None
    known: list[tuple[torch.Tensor, dict[str, Gradient]]] = []

    def gradient(name: str, side: TensorsByName, parameters: Parameters) -> Gradient:
        """Both sides were given equal inputs, and all stages read one computation."""
        given = side[f"given.{INPUT}"]
        if not known or not same_tensor(known[0][0], given):
            known[:] = [(given, _gradients(component.kind, side, parameters, cotangent))]
        return known[0][1][name]

    def elements(name: str) -> TapFunction:
        return TapFunction(lambda side, parameters: gradient(name, side, parameters).elements())

    def scale(name: str) -> TapFunction:
        def compute(side: TensorsByName, parameters: Parameters) -> Expected:
            return gradient(name, side, parameters).scale(side[f"grad.{name}"])

        return TapFunction(compute)

    stages = []
    for name in leaves(component.kind):
        axes = _AXES.get(name, ("dimension",) if name.endswith(".bias") or name == "ln1" else ("row", "column"))
        stages += [
            Stage("gradient", f"grad.{name}", elements(name), axes),
            Stage("gradient_scale", f"grad.{name}", scale(name), axes, meaning="all of a slice is too large or small"),
        ]
    return tuple(stages)


def _gradients(kind: str, side: TensorsByName, parameters: Parameters, cotangent: Cotangent) -> dict[str, Gradient]:
    given = side[f"given.{INPUT}"]
    stored = {name: _weight(name, parameters) for name in leaves(kind) if name != INPUT}
    attends = kind in ("attn", "block")

    def run(wide: Mapping[str, torch.Tensor], roundings: Roundings) -> torch.Tensor:
        setting = forward.Setting(
            dtype=given.dtype,
            roundings=roundings,
            scores=installed().sampled_scores,
            n_heads=parameters.n_heads,
            eps=parameters.eps,
            table=parameters.tensor("attn.table") if attends else None,
            position_ids=side["given.position_ids"] if attends else None,
            mask=side["given.attention_mask"] if attends else None,
        )
        return _FORWARDS[kind](arriving(wide[INPUT], given.dtype, roundings), wide, setting)

    def slices(name: str, gradient: torch.Tensor) -> torch.Tensor:
        by_head = _AXES.get(name, ())[:1] == ("head",)
        return gradient.unflatten(0, (parameters.n_heads, -1)) if by_head else gradient

    width = given.shape[-1] if kind in ("attn", "block", "ln1", "mlp") else len(parameters.tensor(kind))
    drawn = cotangent(given.new_empty(*given.shape[:-1], width))
    return gradients(run, {INPUT: given, **stored}, drawn, slices, parameters.shortcuts)


def _weight(name: str, parameters: Parameters) -> torch.Tensor:
    if name.endswith(".bias"):
        return parameters.required_bias(name.removesuffix(".bias"))
    return parameters.tensor(name)


def _conditions(spec: InputSpec) -> Conditions:
    return Conditions(gradients=True, cotangent=Cotangent(spec.seed))


CASE = Case(transform=_transform, steps=one_forward("backward", _conditions), stages=_stages)
