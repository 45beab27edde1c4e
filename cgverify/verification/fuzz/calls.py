"""A call of a component as plain values, and the forward that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from cgverify.observe.components import FLAGGED_HOOKS, Component
from cgverify.observe.conditions import PLAIN, Conditions
from cgverify.observe.inputs import LOWEST, CaseInputs, Inputs, InputSpec, Step, draw, leave_unchanged
from cgverify.observe.stages import Stage
from cgverify.oracle.arithmetic import HALVES
from cgverify.plan.cases import CASE_KINDS

NAME = "fuzz"
PLAIN_MODE, GRADIENTS, BACKWARD = "plain", "gradients", "backward"
MODES = (PLAIN_MODE, GRADIENTS, "patched", "gated", "autocast", "train", "cast_table", BACKWARD)
"""The conditions of a call: plain ones, autograd on, or those of a case."""
USUAL_VALUES = ("normal", "spread")
VALUES = (*USUAL_VALUES, "large", "small", "offset", "equal", "zero", "begun", "huge", "tiny", "nan", "infinite")
ODD_VALUES = ("huge", "tiny", "nan", "infinite")
"""Values that only a plain call has: where both sides overflow, only equal bits can be asked for."""
VALUES_OF_IDS = ("normal", "equal", "zero", "begun")
POSITIONS = ("rising", "last", "gaps", "repeated", "falling")
MASKS = ("causal", "padded", "open", "soft", "random", "faint", "none")
MASKS_WITH_GRADIENTS = ("causal", "soft")
"""Those in which each token sees itself and none that follow, as an earlier call that cached it has seen it."""
SPANS = ("shared", "rows", "heads")
"""Whether a mask is one for all, one for each sequence, or one for each head."""
CACHES = ("", "one", "other", "fixed")
"""The cache that goes through a call: none, one of two that grow, or one of fixed size."""
USES = ("usual", "reordered", "cropped", "quiet", "by_position")
"""How a cache is handed over: as it is, with its rows reordered or its last token dropped, without `use_cache`, or by
position."""
FIXED_SIZE = 40
"""The tokens that the cache of fixed size has room for."""
MOST_DIFFERENTIATED = 16
"""The most tokens of a call whose gradients are compared: their bounds are sampled, which takes time."""


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


def step_name(number: int) -> str:
    """Return the name of the forward that is made of a call, counted from 1."""
    return f"call {number}"


@dataclass(frozen=True)
class Placed:
    """A call at its place in a sequence."""

    call: Call
    """Without what has no effect on the component, or at this place."""
    conditions: Conditions
    cache: str
    """The name of its cache; empty if none goes through it."""
    past: int
    """How many tokens its cache has."""

    @property
    def is_fixed(self) -> bool:
        return self.call.cache == "fixed"

    @property
    def length(self) -> int:
        """How many tokens its cache has after it."""
        return self.past + self.call.tokens

    @property
    def keys(self) -> int:
        return FIXED_SIZE if self.is_fixed else self.length


@dataclass(frozen=True)
class CallMaker:
    """Makes forwards of calls on one component."""

    component: Component
    config: CodeGenConfig
    spec: InputSpec

    conditions: Mapping[str, Sequence[tuple[Conditions, bool]]]
    """The conditions of each mode's forwards, and whether a cache goes through them."""
    takes: frozenset[str]
    """The names of the component's inputs."""

    @classmethod
    def of(cls, component: Component, config: CodeGenConfig, spec: InputSpec) -> CallMaker:
        made = {PLAIN_MODE: [(PLAIN, False)], GRADIENTS: [(Conditions(gradients=True), False)]}
        drawn = component.random_inputs(config)
        for mode in MODES[2:]:
            if component.kind in CASE_KINDS[mode]:
                case = CASES[mode]
                inputs = draw(drawn, spec, leave_unchanged, case.extra_tokens)
                steps = [step for step in case.steps(component, inputs, spec) if step.conditions != PLAIN]
                steps = [step for step in steps if step.conditions.patches or mode != "patched"]
                made[mode] = list(dict.fromkeys((step.conditions, step.cache is not None) for step in steps))
        return cls(component, config, spec, made, frozenset(drawn(1, 1)))

    @property
    def attends(self) -> bool:
        return "position_ids" in self.takes

    @property
    def values(self) -> tuple[str, ...]:
        return VALUES if "hidden_states" in self.takes else VALUES_OF_IDS

    def placed(self, call: Call, cached: Mapping[str, int]) -> Placed | None:
        """Return a call at its place; None if it goes beyond the table of positions or the cache of fixed size.

        Args:
            cached: by cache, how many tokens earlier calls have left there.
        """
        mode = call.mode if call.mode in self.conditions else PLAIN_MODE
        if mode == BACKWARD and call.batch * call.tokens > MOST_DIFFERENTIATED:
            mode = GRADIENTS
        variant = call.variant % len(self.conditions[mode])
        if mode == BACKWARD and call.tokens == 1:  # a prefix and what follows are two tokens
            variant = 0
        conditions, takes_cache = self.conditions[mode][variant]
        cache = name = ""
        use, past = USES[0], 0
        if self.attends and (takes_cache or (mode in (PLAIN_MODE, GRADIENTS) and call.cache)):
            cache = "one" if not call.cache or (call.cache == "fixed" and mode != PLAIN_MODE) else call.cache
            # Keys that a hook replaced, or that autocast or another table rounded, are those of no other mode.
            own = f" {mode} {conditions.autocast}" if mode in ("patched", "autocast", "cast_table") else ""
            name = f"{cache} {call.batch}{own}"
            past, use = cached.get(name, 0), call.use
            if (use == "cropped" and (past < 2 or cache == "fixed")) or (
                use == "reordered" and (not past or call.batch == 1 or cache == "fixed")
            ):
                use = USES[0]
            conditions = replace(conditions, use_cache=use != "quiet", by_position=use == "by_position")
            past -= use == "cropped"
        update = {"mode": mode, "variant": variant, "cache": cache, "use": use} | self._inputs_of(call, mode, cache)
        settled = call.model_copy(update=update)
        # An event compares what it leaves behind with an earlier call, under no conditions.
        if conditions != PLAIN or cache or settled.values not in USUAL_VALUES or not self._can_happen(call.event):
            settled = settled.plainly
        placed = Placed(settled, conditions, name, past)
        return placed if placed.length <= min(placed.keys, self.spec.n_positions) else None

    def _can_happen(self, event: str) -> bool:
        has_flags = self.component.kind in FLAGGED_HOOKS
        return self.component.kind in CASE_KINDS["state"] and (event != "flags were turned on and off" or has_flags)

    def _inputs_of(self, call: Call, mode: str, cache: str) -> dict[str, Any]:
        """Return the fields of a call that are about its tensors, as usual where they have no effect."""
        values, several, one = call.values, call.batch > 1, call.batch * call.tokens == 1
        if (
            values not in self.values
            or (values in ODD_VALUES and mode not in (PLAIN_MODE, GRADIENTS))
            or (mode == BACKWARD and "hidden_states" in self.takes)
            or (values == "equal" and one)
        ):
            values = VALUES[0]
        # Given a strided input in 16 bits, torch rounds the product of a Linear before it adds the bias.
        strides = several and call.tokens > 1 and (self.component.kind not in BIASED or self.spec.dtype not in HALVES)
        fields = {"values": values, "strided": call.strided and strides}
        if not self.attends:
            return fields | {"positions": POSITIONS[0], "by_row": False, "mask": MASKS[0], "span": SPANS[0]}
        mask, span, positions = call.mask, call.span, call.positions
        if mask == "none" and (call.tokens > 1 or cache == "fixed" or self.component.kind != "attn"):
            mask = MASKS[0]
        if mode == BACKWARD and mask not in MASKS_WITH_GRADIENTS:
            mask = MASKS[0]
        if mask == "none" or (span == "rows" and not several):
            span = SPANS[0]
        if positions in ("repeated", "falling") and call.tokens == 1:
            positions = POSITIONS[0]
        by_row = call.by_row and several and call.tokens > 1
        return fields | {"positions": positions, "by_row": by_row, "mask": mask, "span": span}

    def settled(self, calls: Iterable[Call]) -> tuple[Call, ...]:
        """Return a sequence of calls without what has no effect, and without the calls that go beyond a limit."""
        sequence: list[Call] = []
        cached: dict[str, int] = {}
        for call in calls:
            placed = self.placed(call, cached)
            if placed is not None:
                sequence.append(placed.call)
                cached[placed.cache] = placed.length
        return tuple(sequence)

    def forwards(self, calls: Sequence[Call]) -> CaseInputs:
        """Return the forwards of a sequence of calls. One that repeats an earlier call without a cache must be equal.

        A call that goes beyond the table of positions or the cache of fixed size is left out.
        """
        sequence = _Sequence(self)
        for number, call in enumerate(calls, start=1):
            sequence.add(step_name(number), call)
        return CaseInputs(tuple(sequence.steps))

    def inputs(self, placed: Placed) -> Inputs:
        """Return the tensors of a call, on the CPU in float32. The random state is restored."""
        call, past = placed.call, placed.past
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            drawn = self.component.random_inputs(self.config)
            (first,) = {"input_ids", "hidden_states"} & self.takes
            begin = drawn(1, 1)[first] if first == "hidden_states" else torch.zeros(1, 1, dtype=torch.long)
            torch.default_generator.manual_seed(call.seed)
            inputs = drawn(call.batch, call.tokens)
            inputs[first] = _VALUES[call.values](inputs[first], self.spec, begin)
            if call.strided:
                inputs[first] = inputs[first].transpose(0, 1).contiguous().transpose(0, 1)
            if not self.attends:
                return inputs
            rows = [_positions(call.positions, call.tokens, past, self.spec.n_positions) for _ in range(call.batch)]
            rows = [row.roll(at) for at, row in enumerate(rows)] if call.by_row else rows[:1]
            inputs["position_ids"] = torch.stack(rows)
            if call.mask == "none":
                del inputs["attention_mask"]
            else:
                mask = _mask(call, past, self.spec.n_heads)
                inputs["attention_mask"] = pad(mask, (0, placed.keys - mask.shape[-1]), value=LOWEST)
            return inputs


@dataclass
class _Sequence:
    """Forwards that are being made."""

    maker: CallMaker
    steps: list[Step] = field(default_factory=list)
    first: dict[Call, str] = field(default_factory=dict)
    """By call: the name of the first forward without a cache, which a later one must be equal to."""
    cached: dict[str, int] = field(default_factory=dict)
    """By cache: how many tokens it has."""

    def add(self, name: str, call: Call) -> None:
        placed = self.maker.placed(call, self.cached)
        if placed is None:
            return
        call, conditions, cache = placed.call, placed.conditions, placed.cache
        plainly = call.plainly
        if call.event and plainly not in self.first:
            self.add(f"before {name}", plainly)
        change: Callable[[Any], object] | None = None
        if cache and not placed.is_fixed:
            change = partial(_prepare, reorders=call.use == "reordered", crops=call.use == "cropped")
        is_repeated = not cache and conditions.dropout is None
        self.steps.append(
            Step(
                name,
                self.maker.inputs(placed),
                conditions,
                cache=cache or None,
                cache_size=FIXED_SIZE if placed.is_fixed else None,
                change_cache=change,
                repeats=self.first.get(plainly) if is_repeated else None,
                events=(call.event,) if call.event else (),
            )
        )
        if cache:
            self.cached[cache] = placed.length
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
        (BACKWARD, conditions.cotangent is not None),
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


Values = Callable[[torch.Tensor, InputSpec, torch.Tensor], torch.Tensor]
"""From random inputs, and a token that is the same in all calls."""


def _begun(x: torch.Tensor, _: InputSpec, begin: torch.Tensor) -> torch.Tensor:
    return torch.cat((begin.expand(len(x), *begin.shape[1:]), x[:, 1:]), 1)


def _with(value: float) -> Values:
    """Return a function that gives one element of the middle token of the first sequence a value."""

    def place(x: torch.Tensor, _: InputSpec, __: torch.Tensor) -> torch.Tensor:
        x[0, x.shape[1] // 2, 1] = value
        return x

    return place


_VALUES: dict[str, Values] = {
    "normal": lambda x, *_: x,
    "spread": lambda x, spec, _: x * spec.spread,
    "large": lambda x, spec, _: x * spec.spread * 6,
    "small": lambda x, *_: x * 3e-3,
    "offset": lambda x, *_: x + 30,
    "equal": lambda x, *_: x[:1, :1].expand(x.shape).clone(),
    "zero": lambda x, *_: torch.zeros_like(x),
    "begun": _begun,
    "huge": lambda x, spec, _: x * LARGE.get(spec.dtype, 1e6),
    "tiny": lambda x, spec, _: x * TINY.get(spec.dtype, 2.0**-130),
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
