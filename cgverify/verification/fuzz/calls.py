"""A call of a component as plain values, and the forward that is made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import CodeGenConfig

from cgverify.common.records import Record
from cgverify.observe.cases import CASES, caches
from cgverify.observe.cases.case import Case
from cgverify.observe.cases.data import BIASED, LARGE, TINY
from cgverify.observe.components import Component
from cgverify.observe.conditions import PLAIN, Conditions
from cgverify.observe.inputs import LOWEST, CaseInputs, Inputs, InputSpec, Step, draw, leave_unchanged
from cgverify.observe.stages import Stage
from cgverify.oracle.arithmetic import HALVES
from cgverify.plan.cases import CASE_KINDS

NAME = "fuzz"
PLAIN_MODE, GRADIENTS = "plain", "gradients"
MODES = (PLAIN_MODE, GRADIENTS, "patched", "gated", "autocast", "train", "cast_table")
"""The conditions of a call: plain ones, autograd on, or those of a case."""
USUAL_VALUES = ("normal", "spread")
VALUES = (*USUAL_VALUES, "large", "small", "offset", "equal", "zero", "begun", "huge", "tiny", "nan", "infinite")
ODD_VALUES = ("huge", "tiny", "nan", "infinite")
"""Values that only a plain call has: where both sides overflow, only equal bits can be asked for."""
POSITIONS = ("rising", "last", "gaps", "repeated", "falling")
MASKS = ("causal", "padded", "open", "soft", "random", "faint", "none")
SPANS = ("shared", "rows", "heads")
"""Whether a mask is one for all, one for each sequence, or one for each head."""
CACHES = ("", "one", "other", "fixed")
"""The cache that goes through a call: none, one of two that grow, or one of fixed size."""
USES = ("usual", "reordered", "cropped", "quiet", "by_position")
"""How a cache is handed over: as it is, with its rows reordered or its last token dropped, without `use_cache`, or by
position."""
FIXED_SIZE = 40
"""The tokens that the cache of fixed size has room for."""


class Call(Record):
    batch: int = 1
    tokens: int = 1
    cache: str = ""
    """Its cache, which earlier calls of equal batch size may have filled."""
    use: str = USES[0]
    seed: int = 0
    values: str = VALUES[0]
    positions: str = POSITIONS[0]
    by_row: bool = False
    """Whether each sequence has positions of its own."""
    mask: str = MASKS[0]
    span: str = SPANS[0]
    strided: bool = False
    mode: str = PLAIN_MODE
    variant: int = 0
    """Which of the forwards of the mode's case gives the conditions."""
    event: str = ""
    """What happens between an equal call and this one: see `cgverify.observe.events`."""

    def __str__(self) -> str:
        """Return the call in words, without what is usual: `batch 1, tokens 65, mask soft`."""
        given = {"batch": self.batch, "tokens": self.tokens, **self.model_dump(exclude_defaults=True)}
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in given.items())

    @property
    def plainly(self) -> Call:
        """The call that this one must be equal to, whatever happened before."""
        return self.model_copy(update={"event": ""})

    def as_made(self, step: Step) -> Call:
        """Return the call without a cache or an event that the forward made of it has not."""
        update: dict[str, Any] = {}
        if step.cache is None:
            update |= {"cache": "", "use": USES[0]}
        if not step.events:
            update["event"] = ""
        if step.conditions == PLAIN:
            update["mode"] = PLAIN_MODE
        return self.model_copy(update=update)


def step_name(number: int) -> str:
    """Return the name of the forward that is made of a call, counted from 1."""
    return f"call {number}"


@dataclass(frozen=True)
class CallMaker:
    """Makes forwards of calls on one component."""

    component: Component
    config: CodeGenConfig
    spec: InputSpec

    conditions: Mapping[str, Sequence[Step]]
    """The forwards of each mode's case, for their conditions."""

    @classmethod
    def of(cls, component: Component, config: CodeGenConfig, spec: InputSpec) -> CallMaker:
        made = {PLAIN_MODE: [Step("", {})], GRADIENTS: [Step("", {}, Conditions(gradients=True))]}
        for mode in MODES[2:]:
            if component.kind in CASE_KINDS[mode]:
                case = CASES[mode]
                drawn = draw(component.random_inputs(config), spec, leave_unchanged, case.extra_tokens)
                steps = [step for step in case.steps(component, drawn, spec) if step.conditions != PLAIN]
                made[mode] = [step for step in steps if step.conditions.patches] if mode == "patched" else steps
        return cls(component, config, spec, made)

    def forwards(self, calls: Sequence[Call]) -> CaseInputs:
        """Return the forwards of a sequence of calls. One that repeats an earlier call without a cache must be equal.

        A call that goes beyond the table of positions or the cache of fixed size is left out.
        """
        sequence = _Sequence(self)
        for number, call in enumerate(calls, start=1):
            sequence.add(step_name(number), call)
        return CaseInputs(tuple(sequence.steps))

    def chosen(self, call: Call) -> tuple[Conditions, str]:
        """Return the conditions of a call, and the name of its cache; empty if none goes through it."""
        may_cache = bool(call.cache) and self.component.kind in ("attn", "block")
        mode = call.mode if call.mode in self.conditions else PLAIN_MODE
        steps = self.conditions[mode]
        takes_cache = may_cache
        if mode not in (PLAIN_MODE, GRADIENTS):
            steps = [one for one in steps if (one.cache is not None) == may_cache] or steps
            takes_cache = steps[0].cache is not None
        conditions = steps[call.variant % len(steps)].conditions
        if not takes_cache:
            return conditions, ""
        conditions = replace(conditions, use_cache=call.use != "quiet", by_position=call.use == "by_position")
        name = "one" if not call.cache or (call.cache == "fixed" and mode != PLAIN_MODE) else call.cache
        # Keys that a hook replaced, or that autocast or another table rounded, are those of no other mode.
        own = f" {mode} {conditions.autocast}" if mode in ("patched", "autocast", "cast_table") else ""
        return conditions, f"{name} {call.batch}{own}"

    def inputs(self, call: Call, past: int, keys: int) -> Inputs:
        """Return the tensors of a call, on the CPU in float32. The random state is restored."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(call.seed)
            inputs = self.component.random_inputs(self.config)(call.batch, call.tokens)
            (first,) = {"input_ids", "hidden_states"} & inputs.keys()
            if first == "hidden_states":
                values = call.values
                if values in ODD_VALUES and call.mode not in (PLAIN_MODE, GRADIENTS):
                    values = VALUES[0]
                inputs[first] = _VALUES[values](inputs[first], self.spec)
            elif call.values == "equal":
                inputs[first] = inputs[first][:1, :1].expand(inputs[first].shape).clone()
            # Given a strided input in 16 bits, torch rounds the product of a Linear before it adds the bias.
            if call.strided and (self.component.kind not in BIASED or self.spec.dtype not in HALVES):
                inputs[first] = inputs[first].transpose(0, 1).contiguous().transpose(0, 1)
            if "position_ids" not in inputs:
                return inputs
            rows = [_positions(call.positions, call.tokens, past, self.spec.n_positions) for _ in range(call.batch)]
            rows = [row.roll(at) for at, row in enumerate(rows)] if call.by_row else rows[:1]
            inputs["position_ids"] = torch.stack(rows)
            if call.mask == "none" and call.tokens == 1 and keys == past + 1 and self.component.kind == "attn":
                del inputs["attention_mask"]
            else:
                mask = _mask(call, past, self.spec.n_heads)
                inputs["attention_mask"] = pad(mask, (0, keys - mask.shape[-1]), value=LOWEST)
            return inputs


@dataclass
class _Sequence:
    """Forwards that are being made."""

    maker: CallMaker
    steps: list[Step] = field(default_factory=list)
    first: dict[Call, str] = field(default_factory=dict)
    """By call: the name of the first forward without a cache, which a later one must be equal to."""
    cached: Counter[str] = field(default_factory=Counter)
    """By cache: how many tokens it has."""

    def add(self, name: str, call: Call) -> None:
        conditions, cache = self.maker.chosen(call)
        is_fixed = cache.startswith("fixed")
        past = self.cached[cache] if cache else 0
        change: Callable[[Any], object] | None = None
        if cache and not is_fixed:
            crops = call.use == "cropped" and past > 1
            past -= crops
            change = partial(_prepare, reorders=call.use == "reordered", crops=crops)
        keys = FIXED_SIZE if is_fixed else past + call.tokens
        if past + call.tokens > min(keys, self.maker.spec.n_positions):
            return
        plainly = call.plainly
        # An event compares what it leaves behind with an earlier call, under no conditions.
        happens = bool(call.event) and not cache and conditions == PLAIN and call.values in USUAL_VALUES
        happens = happens and self.maker.component.kind in CASE_KINDS["state"]
        if happens and plainly not in self.first:
            self.add(f"before {name}", plainly)
        is_repeated = not cache and conditions.dropout is None
        repeats = self.first.get(plainly) if is_repeated else None
        inputs = self.maker.inputs(call, past, keys)
        self.steps.append(
            Step(
                name,
                inputs,
                conditions,
                cache=cache or None,
                cache_size=keys if is_fixed else None,
                change_cache=change,
                repeats=repeats,
                events=(call.event,) if happens else (),
            )
        )
        if cache:
            self.cached[cache] = past + call.tokens
        else:
            self.first.setdefault(plainly, name)


def _prepare(cache: Any, *, reorders: bool, crops: bool) -> None:
    """Cut a cache off from autograd, since a copy of it is needed, and change it as a use says."""
    for layer in cache.layers:
        if layer.is_initialized and isinstance(layer.keys, torch.Tensor):
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
    if reorders:
        caches.reorder(cache)
    if crops:
        caches.drop_last(cache)


def _stages(component: Component, step: Step) -> tuple[Stage, ...]:
    """Return the stages that judge a call: those of the case that its conditions are of."""
    conditions = step.conditions
    for mode, is_on in (
        ("patched", conditions.patches),
        ("train", conditions.dropout is not None),
        ("autocast", conditions.autocast),
        ("cast_table", conditions.cast_table),
        ("gated", conditions.flags),
        ("caches", step.cache_size is not None),
    ):
        if is_on:
            return CASES[mode].stages(component, step)
    return component.stages(step.cache is not None)


CASE = Case(stages=_stages, shared=CASES["train"].shared, accepts_equal_bits=True)


# --- tensors ----------------------------------------------------------------------------------------------------------


def _begun(x: torch.Tensor, _: InputSpec) -> torch.Tensor:
    return torch.cat((x[:1, :1].expand(len(x), -1, -1), x[:, 1:]), 1)


def _with(value: float) -> Callable[[torch.Tensor, InputSpec], torch.Tensor]:
    """Return a function that gives one element of the middle token of the first sequence a value."""

    def place(x: torch.Tensor, _: InputSpec) -> torch.Tensor:
        x[0, x.shape[1] // 2, 1] = value
        return x

    return place


_VALUES: dict[str, Callable[[torch.Tensor, InputSpec], torch.Tensor]] = {
    "normal": lambda x, _: x,
    "spread": lambda x, spec: x * spec.spread,
    "large": lambda x, spec: x * spec.spread * 6,
    "small": lambda x, _: x * 3e-3,
    "offset": lambda x, _: x + 30,
    "equal": lambda x, _: x[:1, :1].expand(x.shape).clone(),
    "zero": lambda x, _: torch.zeros_like(x),
    "begun": _begun,
    "huge": lambda x, spec: x * LARGE.get(spec.dtype, 1e6),
    "tiny": lambda x, spec: x * TINY.get(spec.dtype, 2.0**-130),
    "nan": _with(torch.nan),
    "infinite": _with(torch.inf),
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
