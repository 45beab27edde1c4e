"""A call of a component as plain values, and the forward that is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import CodeGenConfig

from cgverify.common.records import Record
from cgverify.observe.cases import CASES
from cgverify.observe.cases.case import Case
from cgverify.observe.components import Component
from cgverify.observe.conditions import PLAIN, Conditions
from cgverify.observe.inputs import LOWEST, CaseInputs, Inputs, InputSpec, Step, draw
from cgverify.observe.stages import Stage
from cgverify.plan.cases import CASE_KINDS

NAME = "fuzz"
PLAIN_MODE, GRADIENTS = "plain", "gradients"
MODES = (PLAIN_MODE, GRADIENTS, "patched", "gated", "autocast", "train", "cast_table")
"""The conditions of a call: plain ones, autograd on, or those of a case."""
VALUES = ("normal", "spread", "large", "small", "offset", "equal", "zero")
POSITIONS = ("rising", "last", "gaps", "repeated", "falling")
MASKS = ("causal", "padded", "open", "soft", "random", "faint")
SPANS = ("shared", "rows", "heads")
"""Whether a mask is one for all, one for each sequence, or one for each head."""


class Call(Record):
    batch: int = 1
    tokens: int = 1
    cache: bool = False
    """Whether a cache goes through it, which earlier calls of the same mode and batch size may have filled."""
    seed: int = 0
    values: str = VALUES[0]
    positions: str = POSITIONS[0]
    by_row: bool = False
    """Whether each sequence has positions of its own."""
    mask: str = MASKS[0]
    span: str = SPANS[0]
    mode: str = PLAIN_MODE
    variant: int = 0
    """Which of the forwards of the mode's case gives the conditions."""

    def __str__(self) -> str:
        """Return the call in words, without what is usual: `batch 1, tokens 65, mask soft`."""
        given = self.model_dump(exclude_defaults=True) | {"batch": self.batch, "tokens": self.tokens}
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())


def step_name(number: int) -> str:
    """Return the name of the forward that is made of a call, counted from 1."""
    return f"call {number}"


def forwards(calls: Sequence[Call], component: Component, config: CodeGenConfig, spec: InputSpec) -> CaseInputs:
    """Return the forwards of a sequence of calls. One that repeats an earlier call without a cache must be equal."""
    steps: list[Step] = []
    first: dict[Call, str] = {}
    cached: Counter[str] = Counter()
    for number, call in enumerate(calls, start=1):
        conditions, takes_cache = _conditions(call, component, config, spec)
        cache = f"{call.mode} {call.variant} {call.batch}" if takes_cache else None
        past = cached[cache] if cache is not None else 0
        if past + call.tokens > config.n_positions:
            continue
        if cache is not None:
            cached[cache] += call.tokens
        name = step_name(number)
        repeats = None if cache is not None or conditions.dropout is not None else first.get(call)
        steps.append(Step(name, _inputs(call, component, config, spec, past), conditions, cache, repeats=repeats))
        first.setdefault(call, name)
    return CaseInputs(tuple(steps))


def _conditions(call: Call, component: Component, config: CodeGenConfig, spec: InputSpec) -> tuple[Conditions, bool]:
    """Return the conditions of a call, and whether a cache goes through it."""
    may_cache = call.cache and component.kind in ("attn", "block")
    if call.mode not in CASES or component.kind not in CASE_KINDS[call.mode]:
        return (Conditions(gradients=True) if call.mode == GRADIENTS else PLAIN), may_cache
    drawn = draw(component.random_inputs(config), spec, lambda inputs, _: inputs, CASES[call.mode].extra_tokens)
    steps = [step for step in CASES[call.mode].steps(component, drawn, spec) if step.conditions != PLAIN]
    if call.mode == "patched":
        steps = [step for step in steps if step.conditions.patches]
    fitting = [one for one in steps if (one.cache is not None) == may_cache and one.cache_size is None]
    chosen = (fitting or steps)[call.variant % len(fitting or steps)]
    return chosen.conditions, chosen.cache is not None


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    """Return the stages that judge a call: those of the case that its conditions are of."""
    conditions = step.conditions
    for mode, is_on in (
        ("patched", conditions.patches),
        ("train", conditions.dropout is not None),
        ("autocast", conditions.autocast),
        ("cast_table", conditions.cast_table),
        ("gated", conditions.flags),
    ):
        if is_on:
            return CASES[mode].stages(component, step)
    return component.stages(step.cache is not None)


CASE = Case(stages=_stages, shared=CASES["train"].shared)


# --- tensors ----------------------------------------------------------------------------------------------------------


def _inputs(call: Call, component: Component, config: CodeGenConfig, spec: InputSpec, past: int) -> Inputs:
    """Return the tensors of a call, on the CPU in float32. The random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(call.seed)
        inputs = component.random_inputs(config)(call.batch, call.tokens)
        if "input_ids" in inputs:
            return {"input_ids": inputs["input_ids"]}
        inputs["hidden_states"] = _VALUES[call.values](inputs["hidden_states"], spec.spread)
        if "position_ids" not in inputs:
            return inputs
        rows = [_positions(call.positions, call.tokens, past, config.n_positions) for _ in range(call.batch)]
        inputs["position_ids"] = torch.stack([row.roll(at) for at, row in enumerate(rows)] if call.by_row else rows[:1])
        inputs["attention_mask"] = _mask(call, past, config.n_head)
        return inputs


_VALUES: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "normal": lambda x, _: x,
    "spread": lambda x, spread: x * spread,
    "large": lambda x, spread: x * spread * 6,
    "small": lambda x, _: x * 3e-3,
    "offset": lambda x, _: x + 30,
    "equal": lambda x, _: x[:1, :1].expand(x.shape).clone(),
    "zero": lambda x, _: torch.zeros_like(x),
}


def _positions(kind: str, tokens: int, past: int, rows: int) -> torch.Tensor:
    rising = torch.arange(past, past + tokens)
    if kind == "last":
        return torch.arange(rows - tokens, rows)
    if kind == "gaps":
        return torch.randperm(rows)[:tokens].sort().values
    if kind == "repeated":
        return rising // 2
    return rising.flip(0) if kind == "falling" else rising


def _mask(call: Call, past: int, heads: int) -> torch.Tensor:
    """Return an additive mask `[1 or batch, 1 or heads, tokens, past + tokens]`."""
    keys = past + call.tokens
    shape = (1 if call.span == "shared" else call.batch, heads if call.span == "heads" else 1, call.tokens, keys)
    hidden = torch.ones(call.tokens, keys, dtype=torch.bool).triu(past + 1).expand(shape)
    soft = torch.randn(shape) * 2 if call.mask == "soft" else torch.zeros(shape)
    if call.mask == "open":
        return soft
    if call.mask == "random":
        hidden = hidden | (torch.rand(shape) < 0.5)
    if call.mask == "padded":
        ends = torch.arange(1, shape[0] + 1) * keys // (2 * shape[0])
        hidden = hidden | (torch.arange(keys) < ends[:, None, None, None])
    return soft.masked_fill(hidden, -1e4 if call.mask == "faint" else LOWEST)


def sizes() -> Iterator[int]:
    """Yield numbers of tokens in rising order, small ones and those around powers of two many times."""
    for size in range(1, 301):
        near = any(abs(size - power) <= 1 for power in (16, 32, 64, 128, 256))
        yield from [size] * (40 if size <= 6 else 12 if near or size <= 20 else 1)
