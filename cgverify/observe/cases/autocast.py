"""`autocast`: both sides under `torch.autocast`, as most people run a float32 checkpoint in 16 bits.

| cell | autocast to |
|---|---|
| float32, float64 | bfloat16 (the CPU's default) and float16 (CUDA's), one after the other |
| bfloat16, float16 | its own dtype: mixing the two 16-bit dtypes raises in Hugging Face |

Attention and the block decode through a cache, which in a float32 cell is float32 with 16-bit values. Everything else
is one forward. The inputs are those of `stress`. `cgverify/oracle/autocast.py` says what torch rounds and what it
leaves. In a float64 cell only the scores change, since Hugging Face casts q and k to float32, which is eligible.

Only this case sees an operation that leaves autocast, or that casts by hand what autocast would have left: scores in
float32, a softmax, a layer norm, a rotation or a mask in 16 bits, a cache in the dtype of autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch.nn import functional

from cgverify.observe.cases.case import Case
from cgverify.observe.cases.decode import pieces
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.generations import installed
from cgverify.observe.inputs import Inputs, InputSpec, Step
from cgverify.observe.stages import Heads, Oracle, Stage, TapFunction, TensorsByName, WeightProduct
from cgverify.oracle.arithmetic import HALVES, Expected
from cgverify.oracle.autocast import operand, widened
from cgverify.oracle.gelu import gelu_new
from cgverify.oracle.parameters import Parameters
from cgverify.plan.cases import DECODED_TOKENS


def autocast_dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes of autocast in a cell of `dtype`."""
    return (dtype,) if dtype in HALVES else HALVES


def _steps(_: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    steps = []
    for low in autocast_dtypes(spec.dtype):
        name, conditions = str(low).removeprefix("torch."), Conditions(autocast=low)
        if "attention_mask" in inputs:
            steps += [Step(f"{name} {piece}", part, conditions, cache=name) for piece, part in pieces(inputs, spec)]
        else:
            steps.append(Step(name, inputs, conditions))
    return tuple(steps)


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    low = step.conditions.autocast
    assert low is not None
    return under_autocast(component.stages(step.cache is not None), low)


def under_autocast(stages: tuple[Stage, ...], low: torch.dtype) -> tuple[Stage, ...]:
    """Return stages, those of attention with a cache, as autocast to `low` changes them."""
    return tuple(replace(stage, oracle=_under_autocast(stage, low)) for stage in stages)


_OPERANDS: dict[str, Callable[[torch.Tensor, torch.dtype, str], torch.Tensor]] = {
    "mix": lambda x, low, _: operand(x, low),
    "layer_norm": lambda x, low, device: x.to(
        widened(x.dtype, lambda one: functional.layer_norm(one, (1,)), low, device)
    ),
}
"""By stage: what autocast on a type of device makes of the taps that it reads. Other stages follow from dtypes."""


def _under_autocast(stage: Stage, low: torch.dtype) -> Oracle:
    """The stage's oracle under autocast to `low`."""
    oracle = stage.oracle
    if isinstance(oracle, WeightProduct):
        return replace(oracle, autocast=low)
    heads = Heads(stage.tap.removesuffix("hook_attn_scores"), with_cache=True)

    def scores(side: TensorsByName, parameters: Parameters) -> Expected:
        query, key = heads.query(side, parameters), heads.key(side, parameters)
        return installed().autocast_scores(query, key, side.get("given.attention_mask"), low, parameters.shortcuts)

    def from_operands(side: TensorsByName, parameters: Parameters) -> Expected:
        change = _OPERANDS[stage.name]
        return oracle.compute(_Mapped(side, lambda tap: change(tap, low, parameters.device)), parameters)

    def activation(side: TensorsByName, parameters: Parameters) -> Expected:
        x = side[stage.tap.replace("out.hook_in", "in.hook_out")]
        return gelu_new(x, widened(x.dtype, lambda one: one.pow(3), low, parameters.device))

    if stage.name == "scores":
        return TapFunction(scores)
    if stage.name == "activation":
        return TapFunction(activation)
    return TapFunction(from_operands) if stage.name in _OPERANDS else oracle


class _Mapped(Mapping[str, torch.Tensor]):
    """Tensors by name, each changed when it is read."""

    def __init__(self, tensors: TensorsByName, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._tensors = tensors
        self._change = change

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._change(self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


CASE = Case(steps=_steps, stages=_stages, extra_tokens=DECODED_TOKENS)
