"""From options to cells: the whole product of the axes, in the order in which reports show it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any, Literal

from cgverify.common.errors import NothingToVerifyError, UnknownNameError, UsageError
from cgverify.common.records import Cell, Checkpoint, Prompt, RotaryDim

DTYPES = ("float64", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps")

BEFORE = ("embed",)
PER_LAYER = ("ln1", "attn", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out", "block")
AFTER = ("ln_final", "unembed")
WHOLE = ("model",)
"""The whole bridge, booted at once."""

CASE_KINDS = {
    "default": (*BEFORE, *PER_LAYER, *AFTER),
    "stress": (*BEFORE, *PER_LAYER, *AFTER),
    "decode": ("attn", "block"),
    "masked_row": ("attn", "block"),
    "train": ("attn", "mlp", "block"),
    "cast_table": ("attn", "block"),
    "gated": ("attn", "block"),
    "patched": (*BEFORE, "ln1", "attn", "mlp", "block", *AFTER),
    "autocast": (*PER_LAYER, *AFTER),
    "backward": ("ln1", "attn", "attn.o", "mlp", "mlp.in", "mlp.out", "block"),
    "text": (*BEFORE, *PER_LAYER, *AFTER),
    "model": (*BEFORE, "block", *AFTER, *WHOLE),
}
"""Each case, with the kinds of component that it is for. What it does is in `cgverify/observe/cases/`."""

DEFAULT_CASES = ("default", "stress", "decode")
"""What a plain run verifies; the others are asked for by name, or by `all`."""

DECODE_STEPS = (("token 1", 1), ("token 2", 1), ("chunk", 3))
"""What follows a prefill of `--seq-len` tokens where a sequence is decoded: names and lengths."""

DECODING = ("decode", "autocast")
"""The cases that do so."""

DECODED_TOKENS = sum(length for _, length in DECODE_STEPS)

PROMPTED = ("text", "model")
"""The cases whose inputs are a prompt's."""

FORCED_TOKENS = 2
"""How many of a prompt's last tokens the `model` case takes one by one, through a cache."""

GENERATED_TOKENS = 8
"""How many tokens a whole model then generates."""

CARRIED, TOP_1, AS_CARRIED, GENERATION = "carried", "top_1", "as_carried", "generation"
"""Stages of the `model` case that report and do not gate: see `cgverify/verification/drift.py`."""


@dataclass(frozen=True)
class Axes:
    """What to verify; every combination becomes a cell. No rotary_dims means the checkpoint's own, as `own` does."""

    candidates: Sequence[str] = ("cgverify",)
    dtypes: Sequence[str] = ("float32",)
    devices: Sequence[str] = ("cpu",)
    rotary_dims: Sequence[RotaryDim | Literal["own"]] = ()
    cases: Sequence[str] = DEFAULT_CASES
    layers: Sequence[int] | None = None
    most_layers: int | None = None
    """At most that many of the layers, the first and the last among them, the others evenly between."""
    components: Sequence[str] = ()
    """Globs over names such as `blocks.3.attn` or kinds such as `attn.*`; none means all."""
    seeds: Sequence[int] = (0,)
    batch_size: int = 2
    seq_len: int = 8


@dataclass(frozen=True)
class CheckpointShape:
    """The checkpoint that the cells are about."""

    model: str
    weights: str
    n_layers: int
    rotary_dim: int
    n_positions: int


def cells(checkpoint_shape: CheckpointShape, axes: Axes, prompt: Prompt | None = None) -> list[Cell]:
    """All cells of the plan, in report order.

    Args:
        prompt: what the cases of `PROMPTED` need. It is one sequence, so each of their cells is planned once, whatever
            the seeds, the batch size and the sequence length of random inputs.

    Raises:
        UsageError: a layer that the checkpoint has not, more positions than it has, or a component glob that matches
            nothing.
    """
    layers = _thinned(range(checkpoint_shape.n_layers) if axes.layers is None else axes.layers, axes.most_layers)
    own = ["own"] if not axes.rotary_dims else axes.rotary_dims
    rotary_dims = list(dict.fromkeys(checkpoint_shape.rotary_dim if dim == "own" else dim for dim in own))
    for layer in layers:
        if not 0 <= layer < checkpoint_shape.n_layers:
            raise UsageError(
                f"{checkpoint_shape.model} has no layer {layer}: "
                f"choose layers between 0 and {checkpoint_shape.n_layers - 1}."
            )
    prompted = [case for case in axes.cases if case in PROMPTED]
    if prompted:
        if prompt is None:
            raise UsageError(
                f"The {'case' if len(prompted) == 1 else 'cases'} {' and '.join(prompted)} need a prompt, which only a "
                "checkpoint that is given by name can have: leave them out."
            )
        _require_fit(prompt, prompted, checkpoint_shape)
    decoding = [case for case in axes.cases if case in DECODING]
    longest = axes.seq_len + (DECODED_TOKENS if decoding else 0)
    if longest > checkpoint_shape.n_positions and len(prompted) < len(axes.cases):
        raise UsageError(
            f"{checkpoint_shape.model} has {checkpoint_shape.n_positions} positions, and {longest} are asked for: "
            f"choose shorter sequences (the cases {' and '.join(DECODING)} add {DECODED_TOKENS} tokens)."
        )
    planned = [
        Cell(
            model=checkpoint_shape.model,
            weights=checkpoint_shape.weights,
            layer=layer,
            kind=kind,
            candidate=candidate,
            dtype=dtype,
            device=device,
            rotary_dim=rotary_dim,
            case=case,
            **inputs,
        )
        for candidate, dtype, device, rotary_dim in product(axes.candidates, axes.dtypes, axes.devices, rotary_dims)
        for layer, kind in _places(layers)
        for case in axes.cases
        if kind in CASE_KINDS[case]
        for inputs in _inputs(case, axes, prompt)
    ]
    _require_matches(planned, axes.components)
    return [cell for cell in planned if _selected(cell, axes.components)]


@dataclass(frozen=True)
class CheckpointAxes:
    """A product of axes over one checkpoint."""

    model: str
    """A name, a folder or a hub id."""
    weights: str
    axes: Axes


Excluded = Callable[[Cell], bool]


def nothing(_: Cell) -> bool:
    return False


def plan(
    requests: Sequence[CheckpointAxes],
    found: Mapping[tuple[str, str], Checkpoint],
    excluded: Excluded = nothing,
    setting_excluded: Excluded = nothing,
) -> list[Cell]:
    """The cells of all requests, each once, checkpoint by checkpoint in the order in which they are first asked for.

    Args:
        found: by model and weights as the requests have them.
        excluded: whether a cell is left out.
        setting_excluded: whether all cells are that share a cell's checkpoint and setting. It is asked of the cell that
            stands for them where a checkpoint's shape is not known.

    Raises:
        UsageError: see `cells`.
        NothingToVerifyError: every cell is excluded.
    """
    planned: dict[str, Cell] = {}
    for key in dict.fromkeys((request.model, request.weights) for request in requests):
        for request in requests:
            if (request.model, request.weights) != key:
                continue
            if found[key].n_layers:
                asked, left_out = cells(checkpoint_shape(found[key]), request.axes, found[key].prompt), excluded
            else:
                asked, left_out = _stand_ins(found[key], request.axes), setting_excluded
            planned |= {cell.id: cell for cell in asked if not left_out(cell)}
    if not planned:
        raise NothingToVerifyError("The plan is empty: every cell is excluded.")
    return list(planned.values())


def _stand_ins(checkpoint: Checkpoint, axes: Axes) -> list[Cell]:
    """One cell a setting, for a checkpoint of which not even the shape is known: somebody must bear the error."""
    return cells(
        checkpoint_shape(checkpoint),
        replace(axes, layers=(), components=("embed",), cases=("default",), seeds=axes.seeds[:1]),
    )


def checkpoint_shape(checkpoint: Checkpoint) -> CheckpointShape:
    return CheckpointShape(
        model=checkpoint.name,
        weights=checkpoint.digest,
        n_layers=checkpoint.n_layers,
        rotary_dim=checkpoint.rotary_dim,
        n_positions=checkpoint.n_positions,
    )


WeightsView = int | str
"""What is in view of a checkpoint's weights: a layer's number, `embed`, `ln_final`, `unembed`, or all in turn."""

IN_TURN = "in turn"
"""The view of a prompt's cells: its hidden states go through all others."""


def weights_view(cell: Cell) -> WeightsView:
    if cell.prompt:
        return IN_TURN
    return cell.kind if cell.layer is None else cell.layer


@dataclass(frozen=True)
class Shard:
    """A part of a plan: number `index`, from 1, of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, planned: Sequence[Cell]) -> list[Cell]:
        """Its cells. All shards together are the plan, and no two have a cell in common.

        Cells that share weights stay together: what is dealt out are the views of each checkpoint, one to a shard in
        turn, from a shard that a hash of the checkpoint's name decides. So layers spread evenly, a checkpoint's cells
        are dealt alike whatever else is in the plan, and no shard needs to know the weights.
        """
        views = dict.fromkeys((cell.model, weights_view(cell)) for cell in planned)
        turn: dict[str, int] = {}
        dealt = {}
        for model, seen in views:
            place = turn.setdefault(model, int(hashlib.sha256(model.encode()).hexdigest()[:8], 16))
            dealt[model, seen] = place % self.count
            turn[model] = place + 1
        return [cell for cell in planned if dealt[cell.model, weights_view(cell)] == self.index - 1]


def _thinned(layers: Sequence[int], most: int | None) -> Sequence[int]:
    """At most so many, evenly spread, with both ends: 3 of 0 … 33 are 0, 16 and 33."""
    if most is None or most >= len(layers):
        return layers
    if most == 1:
        return layers[:1]
    return [layers[place * (len(layers) - 1) // (most - 1)] for place in range(most)]


def _inputs(case: str, axes: Axes, prompt: Prompt | None) -> Iterator[dict[str, Any]]:
    """What of a cell says what its inputs are."""
    if prompt is not None and case in PROMPTED:
        yield {"seed": axes.seeds[0], "batch_size": 1, "seq_len": len(prompt.tokens), "prompt": prompt.digest}
        return
    for seed in axes.seeds:
        yield {"seed": seed, "batch_size": axes.batch_size, "seq_len": axes.seq_len}


def _require_fit(prompt: Prompt, cases: Sequence[str], checkpoint_shape: CheckpointShape) -> None:
    """Raise UsageError for a prompt that is too short or too long for its cases."""
    given = len(prompt.tokens)
    least, beyond = (FORCED_TOKENS + 1, GENERATED_TOKENS) if "model" in cases else (1, 0)
    if given < least:
        raise UsageError(f"The prompt has {given} tokens: give --prompt or --tokens with at least {least}.")
    if given + beyond > checkpoint_shape.n_positions:
        more = f" (the model case generates {beyond} more)" if beyond else ""
        raise UsageError(
            f"{checkpoint_shape.model} has {checkpoint_shape.n_positions} positions, "
            f"and the prompt {given} tokens{more}: give a shorter --prompt or --tokens."
        )


def _places(layers: Sequence[int]) -> Iterator[tuple[int | None, str]]:
    yield from ((None, kind) for kind in BEFORE)
    yield from product(layers, PER_LAYER)
    yield from ((None, kind) for kind in (*AFTER, *WHOLE))


def _selected(cell: Cell, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(cell.component, g) or fnmatchcase(cell.kind, g) for g in globs)


def _require_matches(planned: Sequence[Cell], globs: Sequence[str]) -> None:
    """Raise UnknownNameError for a glob that selects no component at all."""
    names = list(dict.fromkeys(name for cell in planned for name in (cell.kind, cell.component)))
    for glob in globs:
        if any(fnmatchcase(name, glob) for name in names):
            continue
        if any(fnmatchcase(kind, glob) for kind in (*BEFORE, *PER_LAYER, *AFTER, *WHOLE)):
            raise UsageError(
                f"None of the cases asked for is for the component {glob!r}; known cases: {', '.join(CASE_KINDS)}."
            )
        raise UnknownNameError("component", glob, names)
