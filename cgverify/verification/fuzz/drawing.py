"""What is drawn: sequences of calls in which features that were not together in a call yet come first.

A feature is a value of a field of a call, such as a mode, a cache with or without tokens, values or a mask. Of some
calls drawn at random the one with the most new features and pairs of features is taken. A call is new, or one of the
last calls with one difference. The calls of a sequence have few sizes, so that they share caches, and what a candidate
keeps by shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from random import Random
from typing import Any

from transformers import CodeGenConfig

from cgverify.common.records import Cell, Record
from cgverify.observe.events import EVENTS
from cgverify.verification.fuzz import calls
from cgverify.verification.fuzz.calls import Call, CallMaker, Placed

WEIGHTS = {"attn": 16, "block": 12, "mlp": 4, "embed": 2, "ln1": 2, "ln_final": 2, "unembed": 2}
"""How often a kind of component is drawn, relative to its parts."""
MODES = {calls.PLAIN_MODE: 30, "patched": 30, "gated": 6, "autocast": 6, "train": 6, calls.GRADIENTS: 2}
"""How often a mode is drawn, relative to the others. The bounds of gradients take a hundred times as long."""
LENGTH = 32
"""The calls of a sequence. For each sequence a process is forked, which takes as long as some calls."""
VARIED, LARGE, UNUSUAL = 0.5, 0.1, 0.4
"""How often a call is one of the last ones with a difference, a new one is large, and a field of it is not usual."""
FIRST = 0.75
"""How often a new call has a mode's forward that was not drawn yet, while there is one."""
LAST = 3
"""How many of the last calls may be varied."""
CHOICES = 16
"""How many calls are drawn for each that is taken."""
SEEDS = 1000

FIELDS: dict[str, Sequence[Any]] = {
    "cache": calls.CACHES,
    "use": calls.USES,
    "values": calls.VALUES,
    "positions": calls.POSITIONS,
    "by_row": (False, True),
    "mask": calls.MASKS,
    "span": calls.SPANS,
    "strided": (False, True),
    "event": ("", *EVENTS),
}
"""The fields that are drawn by themselves, with their values."""

VARIED_FIELDS = (*FIELDS, "event", "cache", "mode", "mode", "seed", "batch", "tokens", "")
"""What a variation changes, or nothing."""


class Example(Record):
    """A sequence of calls on one component."""

    cell: Cell
    calls: tuple[Call, ...]

    def python(self, model: str) -> str:
        """Return Python code that runs the example on a new instance."""
        cell = self.cell
        given = [call.model_dump(exclude_defaults=True).items() for call in self.calls]
        calls = "".join(f"    Call({', '.join(f'{name}={value!r}' for name, value in one)}),\n" for one in given)
        where = f"{model!r}, {cell.candidate!r}, {cell.component!r}, {cell.dtype!r}"
        return (
            "from cgverify.verification.fuzz import Call, replay\n\n"
            f"calls = [\n{calls}]\n"
            f"result = replay({where}, calls, seed={cell.seed})\n"
            "print(result.verdict.value, result.blame)\n"
        )


def examples(makers: Mapping[Cell, CallMaker], seed: int) -> Iterator[Example]:
    """Yield sequences of calls without end, the same for the same seed."""
    random = Random(seed)
    drawers = {(cell.kind, cell.dtype): _Drawer(maker, random) for cell, maker in makers.items()}
    drawn: Counter[Cell] = Counter()
    order = random.sample([*makers], len(makers))
    while True:
        cell = min(order, key=lambda one: drawn[one] / WEIGHTS.get(one.kind, 1))
        drawn[cell] += 1
        yield Example(cell=cell, calls=drawers[cell.kind, cell.dtype].sequence())


def features(placed: Placed) -> list[tuple[str, Any]]:
    """Return what is judged for the first time together: see the module."""
    call = placed.call
    tokens = "1" if call.tokens == 1 else "some" if call.tokens < 5 else "many" if call.tokens < 9 else call.tokens
    found = [(name, getattr(call, name)) for name in FIELDS if name != "cache"]
    return [
        *found,
        ("cache", (call.cache, placed.past > 0)),
        ("mode", (call.mode, call.variant)),
        ("batch", min(call.batch, 3)),
        ("tokens", tokens),
        ("equal", call.batch == call.tokens),
    ]


class _Drawer:
    """Draws sequences of calls on one component."""

    def __init__(self, maker: CallMaker, random: Random) -> None:
        self._maker = maker
        self._random = random
        self._modes = [mode for mode in maker.conditions for _ in range(MODES.get(mode, 1))]
        self._first = self._in_order_of_hooks()
        self._fields = FIELDS | {"values": maker.values}
        self._sizes = sizes(maker.config)
        random.shuffle(self._sizes)
        self._judged: set[object] = set()

    def sequence(self) -> tuple[Call, ...]:
        random = self._random
        batches, tokens = random.sample(range(1, 6), 2), [1, *random.sample(range(2, 9), 2)]
        sequence: list[Call] = []
        cached: dict[str, int] = {}
        for _ in range(LENGTH):
            drawn = self._varied(sequence) if sequence and random.random() < VARIED else self._new(batches, tokens)
            choices = [placed for call in drawn if (placed := self._maker.placed(call, cached)) is not None]
            if not choices:
                continue
            chosen = max(choices, key=lambda placed: len(self._pairs(placed) - self._judged))
            self._judged |= self._pairs(chosen)
            sequence.append(chosen.call)
            cached[chosen.cache] = chosen.length
        return tuple(sequence)

    def _new(self, batches: Sequence[int], tokens: Sequence[int]) -> Iterator[Call]:
        """Yield calls of one size in one mode."""
        random = self._random
        size = random.choice(batches), random.choice(tokens)
        if random.random() < LARGE:
            size = self._sizes.pop(0)
            self._sizes.append(size)
        modes = self._variants(random.choice(self._modes))
        if self._first and random.random() < FIRST:
            modes = [self._first.pop()]
        if modes[0]["mode"] == calls.BACKWARD:
            size = random.randint(1, 3), random.randint(2, 5)
        for _ in range(CHOICES):
            fields = {name: random.choice(own[1:]) for name, own in self._fields.items() if random.random() < UNUSUAL}
            fields |= random.choice(modes)
            if "event" in fields and fields["mode"] == calls.PLAIN_MODE:
                fields |= {"cache": "", "values": random.choice(calls.USUAL_VALUES)}
            yield Call(batch=size[0], tokens=size[1], seed=random.randrange(SEEDS), **fields)

    def _varied(self, sequence: Sequence[Call]) -> Iterator[Call]:
        """Yield one of the last calls with other values of one field, or as it was."""
        random = self._random
        call = random.choice(sequence[-LAST:]).plainly
        name = random.choice(VARIED_FIELDS)
        modes = self._variants(random.choice(self._modes))
        for _ in range(CHOICES):
            update: dict[str, Any] = {}
            if name == "mode":
                update = random.choice(modes)
            elif name in ("batch", "tokens"):
                update = {name: random.randint(1, 5)}
            elif name == "seed":
                update = {name: random.randrange(SEEDS)}
            elif name:
                update = {name: random.choice(self._fields[name])}
            yield call.model_copy(update=update)

    def _in_order_of_hooks(self) -> list[dict[str, Any]]:
        """Return the forwards of all modes at random, the last one first, with those of a hook one after the other.

        A hook that fires in one forward must fire in the others.
        """
        groups: dict[object, list[dict[str, Any]]] = {}
        for mode, own in self._maker.conditions.items():
            for (conditions, _), one in zip(own, self._variants(mode), strict=True):
                patch = conditions.patch
                groups.setdefault(patch.tap if patch else (mode, len(groups)), []).insert(0, one)
        order = self._random.sample([*groups], len(groups))
        return [one for name in order for one in groups[name]]

    def _variants(self, mode: str) -> list[dict[str, Any]]:
        return [{"mode": mode, "variant": at} for at in range(len(self._maker.conditions[mode]))]

    @staticmethod
    def _pairs(placed: Placed) -> set[object]:
        return set(combinations(features(placed), 2))


def sizes(config: CodeGenConfig) -> list[tuple[int, int]]:
    """Return larger pairs of batch size and tokens: those near numbers of a model's heads, and long ones."""
    heads, width = config.n_head, config.n_embd // config.n_head
    near = [(batch, size + by) for size in (heads, width) for batch in (1, 2, heads) for by in (-1, 0, 1)]
    edges = {power + by for power in (16, 32, 64, 128, 256) for by in (-1, 0, 1)}
    return near + [(batch, tokens) for tokens in sorted({*edges, *range(20, 301, 13)}) for batch in (1, 2)]
