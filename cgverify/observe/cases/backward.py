"""`backward`: gradients of what is returned, in the hidden states, in every weight and at every hook, and derivatives.

| step | components | derivatives |
|---|---|---|
| `backward` | all | gradients of Σ sum(T · G) over the tensors T that are returned, G drawn from the seed |
| `cached prefix` | attention, block | the gradient in hidden states whose keys and values an earlier call cached |
| `derivatives` | all but the embedding | in forward mode, and of the gradient in the hidden states |

Both sides run with autograd on. Only this case detects what a forward does not show: a tensor that is detached, a
gradient that is scaled, goes through a wrong transpose, or skips the softmax. Hugging Face adds up q, k and v in one
product where a bridge with separate weights adds three, so gradients are within bounds and not always bitwise equal.
The oracle is the float64 gradient with a sampled spread of correct arithmetic (`cgverify/oracle/gradient.py`). Each
gradient is judged element by element, and slice by slice for a common factor. Positions and mask are those of `stress`.

In `backward` the candidate runs three times: with hooks that listen; without hooks, where a second backward pass must
double the gradients to the bit; and with hooks that all return copies. The third has a mask that is learned, and
backward hooks. Gradients in the mask, in the hidden states (`hooked.hidden_states`) and at the hooks are judged there.
Hugging Face's side does not show gradients of tensors inside a module: these are judged by their oracle alone. With
sdpa there are no derivatives, since torch's fused kernel has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from cgverify.common.records import EAGER
from cgverify.observe.bits import same_tensor
from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import Conditions, Cotangent
from cgverify.observe.derivatives import tangent_and_second, through_a_cache
from cgverify.observe.generations import installed
from cgverify.observe.gradients import LEARNED, modules_with_gradients
from cgverify.observe.inputs import LOWEST, Inputs, InputSpec, Step, stress_context
from cgverify.observe.stages import PATTERN, RESIDUAL, Stage, TapFunction, TensorsByName
from cgverify.oracle import gradient as oracle
from cgverify.oracle.arithmetic import Expected, exact_output
from cgverify.oracle.forward import FORWARDS, Context
from cgverify.oracle.gradient import Gradient
from cgverify.oracle.monte_carlo import Roundings, gradient_stored
from cgverify.oracle.parameters import Parameters

INPUT = "hidden_states"
_BY_HEAD = ("attn.q", "attn.k", "attn.v")
_NORMS = ("ln1", "ln_final")
_LINEARS = ("attn.o", "mlp.in", "mlp.out", "unembed")

Gradients = dict[str, Gradient]
Compute = Callable[[TensorsByName, Parameters], Gradients]
"""From one side's tensors to gradients by tap."""


def leaves(kind: str) -> tuple[str, ...]:
    """Return what a component has gradients in: the hidden states, and weights by the names of `Parameters`."""
    names = [] if kind == "embed" else [INPUT]
    for module in modules_with_gradients(kind):
        names += [module, f"{module}.bias"] if module.startswith((*_NORMS, "mlp", "unembed")) else [module]
    return tuple(names)


def _axes(leaf: str) -> tuple[str, ...]:
    if leaf == INPUT:
        return RESIDUAL
    if leaf in LEARNED:
        return PATTERN
    if leaf in _BY_HEAD:
        return ("head", "dimension", "input")
    return ("dimension",) if leaf in _NORMS or leaf.endswith(".bias") else ("row", "column")


def hooks_with_gradients(component: Component) -> dict[str, tuple[str, ...]]:
    """Return the taps at which gradients are judged, with their axes. The input's is that of the hidden states."""
    return {
        stage.tap: stage.axes
        for stage in component.stages(False)
        if stage.required and stage.tap != "hook_in" and not stage.tap.startswith("returned")
    }


# --- the forwards -----------------------------------------------------------------------------------------------------


def _transform(inputs: Inputs, spec: InputSpec) -> Inputs:
    if "input_ids" in inputs:  # the first row of the table, and one that is looked up many times
        ids = inputs["input_ids"].clone()
        ids[:, ids.shape[1] // 2 :] = ids[-1, -1]
        ids[0, 0] = 0
        return {"input_ids": ids}
    if "position_ids" not in inputs:
        return inputs
    inputs = stress_context(inputs, spec)
    # The gradient of torch's fused kernel is wrong for a query whose keys are all hidden by finite values: it
    # normalizes by log(n) + mask, which is the mask. The model itself hides keys from that kernel with −∞.
    return inputs if spec.attention == EAGER else _each_seen_by_itself(inputs)


def _each_seen_by_itself(inputs: Inputs) -> Inputs:
    """Return inputs in which no token is hidden from itself."""
    mask = inputs["attention_mask"].clone()
    own = mask.diagonal(dim1=-2, dim2=-1)
    own.masked_fill_(own <= LOWEST, 0)
    return {**inputs, "attention_mask": mask}


def _steps(component: Component, inputs: Inputs, spec: InputSpec) -> tuple[Step, ...]:
    kind, is_eager, attends = component.kind, spec.attention == EAGER, "attention_mask" in inputs
    with_pattern = is_eager and kind in installed().kinds_with_pattern
    conditions = Conditions(gradients=True, cotangent=Cotangent(spec.seed, with_pattern=with_pattern))
    steps = [Step("backward", inputs, conditions)]
    if attends and spec.seq_len > 1:
        # A query that sees no key attends to all keys that there are, of which the first call has fewer.
        seen = _each_seen_by_itself(inputs)
        steps.append(Step("cached prefix", seen, replace(conditions, derivative=through_a_cache)))
    if kind != "embed" and (is_eager or not attends):
        steps.append(Step("derivatives", inputs, replace(conditions, derivative=tangent_and_second)))
    return tuple(steps)


# --- the stages -------------------------------------------------------------------------------------------------------


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    kind, conditions = component.kind, step.conditions
    cotangent = conditions.cotangent
    assert cotangent is not None
    if kind == "embed":
        return _stages_of_embedding(cotangent)
    hooks = hooks_with_gradients(component)
    if conditions.derivative is through_a_cache:
        known = _computed_once(partial(_through_a_cache, kind, cotangent))
        return _judged(known, "cached.hidden_states", RESIDUAL)
    if conditions.derivative is tangent_and_second:
        known = _computed_once(partial(_tangent_and_second, kind, cotangent))
        stages = _judged(known, "tangent.returned", RESIDUAL)
        return stages if kind in _LINEARS else stages + _judged(known, "second.hidden_states", RESIDUAL)
    known = _computed_once(partial(_gradients, kind, cotangent, tuple(hooks)))
    learned = [name for name in LEARNED if name in step.inputs]
    taps = {f"grad.{name}": _axes(name) for name in (*leaves(kind), *learned)} | {f"hooked.{INPUT}": RESIDUAL}
    stages = tuple(stage for tap, axes in taps.items() for stage in _judged(known, tap, axes))
    return stages + tuple(
        Stage("gradient", f"grad.{tap}", _elements(known, f"grad.{tap}", tap), axes, shown_with=())
        for tap, axes in hooks.items()
    )


def _judged(known: Compute, tap: str, axes: tuple[str, ...]) -> tuple[Stage, ...]:
    """Return the stages of a tap: element by element, and for a common factor."""

    def scale(side: TensorsByName, parameters: Parameters) -> Expected:
        return known(side, parameters)[tap].scale(side[tap])

    return (
        Stage("gradient", tap, _elements(known, tap), axes),
        Stage("gradient_scale", tap, TapFunction(scale), axes, meaning="all of a slice is too large or small"),
    )


def _elements(known: Compute, tap: str, of: str | None = None) -> TapFunction:
    """Return the oracle of a gradient, which has the dtype of the tap `of` if one is given."""

    def compute(side: TensorsByName, parameters: Parameters) -> Expected:
        return known(side, parameters)[tap].elements(None if of is None else side[of].dtype)

    return TapFunction(compute)


def _computed_once(compute: Compute) -> Compute:
    """Return a computation that is done once for all stages and for both sides, which have equal inputs."""
    known: list[tuple[torch.Tensor, Gradients]] = []

    def computed(side: TensorsByName, parameters: Parameters) -> Gradients:
        given = side[f"given.{INPUT}"]
        if not known or not same_tensor(known[0][0], given):
            known[:] = [(given, compute(side, parameters))]
        return known[0][1]

    return computed


def _stages_of_embedding(cotangent: Cotangent) -> tuple[Stage, ...]:
    def given(side: TensorsByName, parameters: Parameters) -> torch.Tensor:
        table = parameters.tensor("embed")
        return cotangent(table.new_empty(*side["given.input_ids"].shape, table.shape[-1]))

    def of_table(side: TensorsByName, parameters: Parameters) -> Expected:
        rows = len(parameters.tensor("embed"))
        return oracle.added_rows(side["given.input_ids"], given(side, parameters), rows)

    def of_rows(side: TensorsByName, parameters: Parameters) -> Expected:
        drawn = given(side, parameters)
        return exact_output(drawn, drawn.dtype)

    return (
        Stage("gradient", "grad.embed", TapFunction(of_table), _axes("embed")),
        Stage("gradient", "grad.hook_out", TapFunction(of_rows), RESIDUAL, shown_with=()),
    )


# --- the oracles ------------------------------------------------------------------------------------------------------


def _gradients(
    kind: str, cotangent: Cotangent, hooks: tuple[str, ...], side: TensorsByName, parameters: Parameters
) -> Gradients:
    given = side[f"given.{INPUT}"]
    weights = _weights(kind, parameters)
    learned = {name: side[f"given.{name}"] for name in LEARNED if f"given.{name}" in side}
    cotangents = {"hook_out": cotangent(_output(kind, side, parameters))}
    pattern = "attn.hook_pattern" if kind == "block" else "hook_pattern"
    if cotangent.with_pattern:
        batch, seq = given.shape[:2]
        cotangents[pattern] = cotangent.of_pattern(given.new_empty(batch, parameters.n_heads, seq, seq))

    def run(wide: Mapping[str, torch.Tensor], roundings: Roundings) -> Mapping[str, torch.Tensor]:
        return _shown(kind, side, parameters, wide, roundings)

    def slices(name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.unflatten(0, (parameters.n_heads, -1)) if name in _BY_HEAD else gradient

    found = oracle.gradients(
        run, {INPUT: given, **weights, **learned}, cotangents, hooks, given.dtype, slices, parameters.shortcuts
    )
    return {f"grad.{name}": each for name, each in found.items()} | {f"hooked.{INPUT}": found[INPUT]}


def _through_a_cache(kind: str, cotangent: Cotangent, side: TensorsByName, parameters: Parameters) -> Gradients:
    """The gradient of one call with all tokens, whose keys are rounded as a cache rounds them."""
    given, weights = side[f"given.{INPUT}"], _widened(_weights(kind, parameters))

    def run(wide: Mapping[str, torch.Tensor], roundings: Roundings) -> Mapping[str, torch.Tensor]:
        return _shown(kind, side, parameters, {**weights, **wide}, roundings, is_cached=True)

    cotangents = {"hook_out": cotangent(_output(kind, side, parameters))}
    found = oracle.gradients(
        run, {INPUT: given}, cotangents, (), given.dtype, lambda _, each: each, parameters.shortcuts
    )
    return {f"cached.{INPUT}": found[INPUT]}


def _tangent_and_second(kind: str, cotangent: Cotangent, side: TensorsByName, parameters: Parameters) -> Gradients:
    given, weights = side[f"given.{INPUT}"], _widened(_weights(kind, parameters))

    def run(x: torch.Tensor, roundings: Roundings) -> torch.Tensor:
        return _shown(kind, side, parameters, {**weights, INPUT: x}, roundings)["hook_out"]

    drawn = cotangent(_output(kind, side, parameters))
    found = oracle.tangent_and_second(run, given, drawn, cotangent.direction(given), parameters.shortcuts)
    taps = {oracle.TANGENT: "tangent.returned", oracle.SECOND: f"second.{INPUT}"}
    return {taps[name]: each for name, each in found.items()}


def _shown(
    kind: str,
    side: TensorsByName,
    parameters: Parameters,
    wide: Mapping[str, torch.Tensor],
    roundings: Roundings,
    is_cached: bool = False,
) -> dict[str, torch.Tensor]:
    """Return what a component shows to its hooks in a forward in float64, from its weights and the hidden states."""
    dtype = side[f"given.{INPUT}"].dtype
    learned = {
        name: gradient_stored(wide[name], dtype, roundings) if name in wide else side[f"given.{name}"].to(torch.float64)
        for name in LEARNED
        if f"given.{name}" in side
    }
    context = Context(
        dtype=dtype,
        roundings=roundings,
        scores=installed().sampled_scores,
        n_heads=parameters.n_heads,
        eps=parameters.eps,
        table=parameters.tensor("attn.table"),
        position_ids=side.get("given.position_ids"),
        mask=learned.get("attention_mask"),
        is_cached=is_cached,
    )
    output = FORWARDS[kind](gradient_stored(wide[INPUT], dtype, roundings), wide, context)
    return {**context.shown, "hook_out": output}


def _output(kind: str, side: TensorsByName, parameters: Parameters) -> torch.Tensor:
    """Return an empty tensor of the output's shape and dtype."""
    given = side[f"given.{INPUT}"]
    width = len(parameters.tensor(kind)) if kind in _LINEARS else given.shape[-1]
    return given.new_empty(*given.shape[:-1], width)


def _weights(kind: str, parameters: Parameters) -> dict[str, torch.Tensor]:
    return {name: _weight(name, parameters) for name in leaves(kind) if name != INPUT}


def _weight(name: str, parameters: Parameters) -> torch.Tensor:
    module = name.removesuffix(".bias")
    return parameters.tensor(name) if module == name else parameters.required_bias(module)


def _widened(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.to(torch.float64) for name, weight in weights.items()}


CASE = Case(transform=_transform, steps=_steps, stages=_stages)
