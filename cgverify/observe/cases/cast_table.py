"""`cast_table`: both sides are cast as `model.to(dtype)` casts them, the sin/cos table together with the weights.

`from_pretrained(dtype=…)` leaves the table in float32, and all other cases verify that. Both occur, and they are
different computations: with a 16-bit table the rotation is done in 16 bits. Only this case sees a bridge that keeps its
own table from when it was booted, that widens the table again, or that assumes the dtype of rotated heads. The
positions are those of `stress`, where a rounded angle matters.
"""

from __future__ import annotations

from dataclasses import replace

from cgverify.observe.cases.case import Case, each_stage, one_forward
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions
from cgverify.observe.stages import Stage, TapFunction, TensorsByName
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.parameters import Parameters


def _with_cast_table(stage: Stage, _: Component) -> Stage:
    oracle = stage.oracle
    if not isinstance(oracle, TapFunction):
        return stage

    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return oracle.compute(side, parameters.with_cast_table())

    return replace(stage, oracle=TapFunction(compute))


CASE = Case(steps=one_forward(conditions=lambda _: Conditions(cast_table=True)), stages=each_stage(_with_cast_table))
