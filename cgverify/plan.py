"""From options to cells: the whole product of the axes, in the order in which reports show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product

from cgverify.errors import UnknownNameError, UsageError
from cgverify.records import Cell, RotaryDim

DTYPES = ("float64", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps")

BEFORE = ("embed",)
PER_LAYER = ("ln1", "attn", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out", "block")
AFTER = ("ln_final", "unembed")

CASES = {
    "default": (*BEFORE, *PER_LAYER, *AFTER),
    "stress": (*BEFORE, *PER_LAYER, *AFTER),
    "decode": ("attn", "block"),
    "masked_row": ("attn", "block"),
    "train": ("attn", "mlp", "block"),
    "cast_table": ("attn", "block"),
    "gated": ("attn", "block"),
    "patched": ("attn", "mlp", "block"),
    "autocast": (*PER_LAYER, *AFTER),
    "backward": ("ln1", "attn", "attn.o", "mlp", "mlp.in", "mlp.out", "block"),
}
"""Each case, with the kinds of component that it is for. What it does is in `cgverify/cases/`."""

DEFAULT_CASES = ("default", "stress", "decode")
"""What a plain run verifies; the others are asked for by name, or by `all`."""

DECODE_STEPS = (("token 1", 1), ("token 2", 1), ("chunk", 3))
"""What follows a prefill of `--seq-len` tokens where a sequence is decoded: names and lengths."""

DECODING = ("decode", "autocast")
"""The cases that do so."""

DECODED_TOKENS = sum(length for _, length in DECODE_STEPS)


@dataclass(frozen=True)
class Axes:
    """What to verify; every combination becomes a cell. An empty rotary_dims means the checkpoint's own."""

    candidates: Sequence[str] = ("cgverify",)
    dtypes: Sequence[str] = ("float32",)
    devices: Sequence[str] = ("cpu",)
    rotary_dims: Sequence[RotaryDim] = ()
    cases: Sequence[str] = DEFAULT_CASES
    layers: Sequence[int] | None = None
    components: Sequence[str] = ()
    """Globs over names such as `blocks.3.attn` or kinds such as `attn.*`; none means all."""
    seeds: Sequence[int] = (0,)
    batch_size: int = 2
    seq_len: int = 8


@dataclass(frozen=True)
class Subject:
    """The checkpoint that the cells are about."""

    model: str
    weights: str
    n_layers: int
    rotary_dim: int
    n_positions: int


def cells(subject: Subject, axes: Axes) -> list[Cell]:
    """All cells of the plan, in report order.

    Raises:
        UsageError: a layer that the checkpoint has not, more positions than it has, or a component glob that matches
            nothing.
    """
    layers = range(subject.n_layers) if axes.layers is None else axes.layers
    for layer in layers:
        if not 0 <= layer < subject.n_layers:
            raise UsageError(
                f"{subject.model} has no layer {layer}: give --layers between 0 and {subject.n_layers - 1}."
            )
    decoding = [case for case in axes.cases if case in DECODING]
    longest = axes.seq_len + (DECODED_TOKENS if decoding else 0)
    if longest > subject.n_positions:
        raise UsageError(
            f"{subject.model} has {subject.n_positions} positions, and {longest} are asked for: give a smaller "
            f"--seq-len (the cases {' and '.join(DECODING)} add {DECODED_TOKENS} tokens)."
        )
    planned = [
        Cell(
            model=subject.model,
            weights=subject.weights,
            layer=layer,
            kind=kind,
            candidate=candidate,
            dtype=dtype,
            device=device,
            rotary_dim=rotary_dim,
            case=case,
            seed=seed,
            batch_size=axes.batch_size,
            seq_len=axes.seq_len,
        )
        for candidate, dtype, device, rotary_dim in product(
            axes.candidates, axes.dtypes, axes.devices, axes.rotary_dims or (subject.rotary_dim,)
        )
        for layer, kind in _places(layers)
        for case, seed in product(axes.cases, axes.seeds)
        if kind in CASES[case]
    ]
    _require_matches(planned, axes.components)
    return [cell for cell in planned if _selected(cell, axes.components)]


def _places(layers: Sequence[int]) -> Iterator[tuple[int | None, str]]:
    yield from ((None, kind) for kind in BEFORE)
    yield from product(layers, PER_LAYER)
    yield from ((None, kind) for kind in AFTER)


def _selected(cell: Cell, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(cell.component, g) or fnmatchcase(cell.kind, g) for g in globs)


def _require_matches(planned: Sequence[Cell], globs: Sequence[str]) -> None:
    """Raise UnknownNameError for a glob that selects no component at all."""
    names = list(dict.fromkeys(name for cell in planned for name in (cell.kind, cell.component)))
    for glob in globs:
        if any(fnmatchcase(name, glob) for name in names):
            continue
        if any(fnmatchcase(kind, glob) for kind in (*BEFORE, *PER_LAYER, *AFTER)):
            raise UsageError(
                f"No --case that was given is for the component {glob!r}; known cases: {', '.join(CASES)}."
            )
        raise UnknownNameError("component", glob, names)
