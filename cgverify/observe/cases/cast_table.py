"""`cast_table`: both sides are cast as `model.to(dtype)` casts them, the sin/cos table with the weights.

`from_pretrained(dtype=…)` leaves the table in float32, and all other cases verify that. Both occur, and they are two
computations: with a 16-bit table the rotation is done in 16 bits. Only this case sees a bridge that keeps a table of
its own from when it was booted, that widens the table again, or that takes the rotated dtype for granted. The
positions are those of `stress`, where a rounded angle counts.
"""

from __future__ import annotations

from dataclasses import replace

from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.inputs import Inputs, InputSpec, Step
from cgverify.observe.stages import Stage, TapFunction, TensorsByName
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.parameters import Parameters

_CAST = Conditions(cast_table=True)


def _steps(_: Component, inputs: Inputs, __: InputSpec) -> tuple[Step, ...]:
    return (Step("forward", inputs, _CAST),)


def _stages(component: Component, _: Step) -> tuple[Stage, ...]:
    return tuple(
        replace(stage, oracle=_with_cast_table(stage.oracle)) if isinstance(stage.oracle, TapFunction) else stage
        for stage in component.stages(False)
    )


def _with_cast_table(oracle: TapFunction) -> TapFunction:
    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return oracle.compute(side, parameters.with_cast_table())

    return TapFunction(compute)


CASE = Case(bend=lambda stress: stress, steps=_steps, stages=_stages)
