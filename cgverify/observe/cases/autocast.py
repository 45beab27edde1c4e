"""`autocast`: both sides under `torch.autocast`, as most people run a float32 checkpoint in 16 bits.

| cell | autocast to |
|---|---|
| float32, float64 | bfloat16 (the CPU's default) and float16 (CUDA's), one after the other |
| bfloat16, float16 | its own dtype: mixing the two 16-bit dtypes raises in Hugging Face |

Attention and the block decode through a cache, in float32 a float32 one that holds 16-bit values; all else is one
forward. The inputs are those of `stress`. What torch rounds and what it leaves is in `cgverify/oracle/autocast.py`; in
a float64 cell only the scores change, since Hugging Face casts q and k to float32, which is eligible.

Only this case sees an operation that leaves autocast, or that casts by hand what autocast would have left: scores in
float32 after all, a softmax, a layer norm, a rotation or a mask in 16 bits, a cache in the dtype of autocast.
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
from cgverify.observe.inputs import Inputs, InputSpec, Step
from cgverify.observe.stages import Heads, Oracle, Stage, TapFunction, TensorsByName, WeightProduct
from cgverify.oracle.arithmetic import HALVES, Expected
from cgverify.oracle.autocast import operand, widened
from cgverify.oracle.autocast_scores import autocast_scores
from cgverify.oracle.parameters import Parameters
from cgverify.plan.cells import DECODED_TOKENS


def lows(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """The dtypes of autocast in a cell of `dtype`."""
    return (dtype,) if dtype in HALVES else HALVES


def _steps(component: Component, inputs: Inputs, recipe: InputSpec) -> tuple[Step, ...]:
    return tuple(step for low in lows(recipe.dtype) for step in _under(low, component, inputs, recipe))


def _under(low: torch.dtype, component: Component, inputs: Inputs, recipe: InputSpec) -> Iterator[Step]:
    name, conditions = str(low).removeprefix("torch."), Conditions(autocast=low)
    if "attention_mask" not in inputs:
        yield Step(name, inputs, conditions)
        return
    for piece, part in pieces(inputs, recipe):
        yield Step(f"{name} {piece}", part, conditions, cache=name)


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    low = step.conditions.autocast
    assert low is not None
    return tuple(replace(stage, oracle=_rounding(stage, low)) for stage in component.stages(step.cache is not None))


def _rounding(stage: Stage, low: torch.dtype) -> Oracle:
    """The stage's oracle under autocast."""
    if isinstance(stage.oracle, WeightProduct):
        return replace(stage.oracle, autocast=low)
    if stage.name == "scores":
        return _scores(Heads(stage.tap.removesuffix("hook_attn_scores"), with_cache=True), low)
    if stage.name in _TAKEN:
        return _from(_TAKEN[stage.name], stage.oracle, low)
    return stage.oracle


def _scores(heads: Heads, low: torch.dtype) -> TapFunction:
    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        query, key = heads.query(side, parameters), heads.key(side, parameters)
        return autocast_scores(query, key, side.get("given.attention_mask"), low, parameters.shortcuts)

    return TapFunction(compute)


_TAKEN: dict[str, Callable[[torch.Tensor, torch.dtype], torch.Tensor]] = {
    "mix": operand,
    "layer_norm": lambda x, low: widened(x, lambda one: functional.layer_norm(one, (1,)), low),
    "activation": lambda x, low: widened(x, lambda one: one.pow(3), low),
}
"""What a stage makes, under autocast, of each tap that it starts from. The rest follows from dtypes."""


def _from(
    taken: Callable[[torch.Tensor, torch.dtype], torch.Tensor], oracle: TapFunction, low: torch.dtype
) -> TapFunction:
    """The same oracle, from what the operation takes."""

    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return oracle.compute(_Taken(side, lambda tap: taken(tap, low)), parameters)

    return TapFunction(compute)


class _Taken(Mapping[str, torch.Tensor]):
    """A view of a side in which each tap is as an operation takes it."""

    def __init__(self, side: TensorsByName, taken: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._side = side
        self._taken = taken

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._taken(self._side[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._side)

    def __len__(self) -> int:
        return len(self._side)


CASE = Case(bend=lambda stress: stress, steps=_steps, stages=_stages, extra_tokens=DECODED_TOKENS)
