"""From options to cells: the whole product of the axes, in the order in which reports show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from cgverify.errors import UnknownNameError, UsageError
from cgverify.records import Cell, Prompt, RotaryDim

DTYPES = ("float64", "float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda", "mps")

BEFORE = ("embed",)
PER_LAYER = ("ln1", "attn", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out", "block")
AFTER = ("ln_final", "unembed")
WHOLE = ("model",)
"""The whole bridge, booted at once."""

CASES = {
    "default": (*BEFORE, *PER_LAYER, *AFTER),
    "stress": (*BEFORE, *PER_LAYER, *AFTER),
    "decode": ("attn", "block"),
    "masked_row": ("attn", "block"),
    "train": ("attn", "mlp", "block"),
    "cast_table": ("attn", "block"),
    "gated": ("attn", "block"),
    "patched": ("attn", "mlp", "block"),
    "backward": ("ln1", "attn", "attn.o", "mlp", "mlp.in", "mlp.out", "block"),
    "text": (*BEFORE, *PER_LAYER, *AFTER),
    "model": (*BEFORE, "block", *AFTER, *WHOLE),
}
"""Each case, with the kinds of component that it is for. What it does is in `cgverify/cases/`."""

DEFAULT_CASES = ("default", "stress", "decode")
"""What a plain run verifies; the others are asked for by name, or by `all`."""

DECODE_STEPS = (("token 1", 1), ("token 2", 1), ("chunk", 3))
"""What follows the prefill of `--seq-len` tokens in the `decode` case: names and lengths."""

DECODED_TOKENS = sum(length for _, length in DECODE_STEPS)

PROMPTED = ("text", "model")
"""The cases whose inputs are a prompt's."""

FORCED_TOKENS = 2
"""How many of a prompt's last tokens the `model` case takes one by one, through a cache."""

GENERATED_TOKENS = 8
"""How many tokens a whole model then generates."""

CARRIED, TOP_1, AS_CARRIED, GENERATION = "carried", "top_1", "as_carried", "generation"
"""Stages of the `model` case that report and do not gate: see `cgverify/drift.py`."""


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


def cells(subject: Subject, axes: Axes, prompt: Prompt | None = None) -> list[Cell]:
    """All cells of the plan, in report order.

    Args:
        prompt: what the cases of `PROMPTED` need. It is one sequence, so each of their cells is planned once, whatever
            the seeds, the batch size and the sequence length of random inputs.

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
    prompted = [case for case in axes.cases if case in PROMPTED]
    if prompted:
        assert prompt is not None, "these cases need a prompt"
        _require_fit(prompt, prompted, subject)
    longest = axes.seq_len + (DECODED_TOKENS if "decode" in axes.cases else 0)
    if longest > subject.n_positions and len(prompted) < len(axes.cases):
        raise UsageError(
            f"{subject.model} has {subject.n_positions} positions, and {longest} are asked for: give a smaller "
            f"--seq-len (the decode case adds {DECODED_TOKENS} tokens)."
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
            **inputs,
        )
        for candidate, dtype, device, rotary_dim in product(
            axes.candidates, axes.dtypes, axes.devices, axes.rotary_dims or (subject.rotary_dim,)
        )
        for layer, kind in _places(layers)
        for case in axes.cases
        if kind in CASES[case]
        for inputs in _inputs(case, axes, prompt)
    ]
    _require_matches(planned, axes.components)
    return [cell for cell in planned if _selected(cell, axes.components)]


def _inputs(case: str, axes: Axes, prompt: Prompt | None) -> Iterator[dict[str, Any]]:
    """What of a cell says what its inputs are."""
    if prompt is not None and case in PROMPTED:
        yield {"seed": axes.seeds[0], "batch_size": 1, "seq_len": len(prompt.tokens), "prompt": prompt.digest}
        return
    for seed in axes.seeds:
        yield {"seed": seed, "batch_size": axes.batch_size, "seq_len": axes.seq_len}


def _require_fit(prompt: Prompt, cases: Sequence[str], subject: Subject) -> None:
    """Raise UsageError for a prompt that is too short or too long for its cases."""
    given = len(prompt.tokens)
    least, beyond = (FORCED_TOKENS + 1, GENERATED_TOKENS) if "model" in cases else (1, 0)
    if given < least:
        raise UsageError(f"The prompt has {given} tokens: give --prompt or --tokens with at least {least}.")
    if given + beyond > subject.n_positions:
        more = f" (the model case generates {beyond} more)" if beyond else ""
        raise UsageError(
            f"{subject.model} has {subject.n_positions} positions, and the prompt {given} tokens{more}: give a shorter "
            "--prompt or --tokens."
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
                f"No --case that was given is for the component {glob!r}; known cases: {', '.join(CASES)}."
            )
        raise UnknownNameError("component", glob, names)
