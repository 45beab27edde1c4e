"""Axes -> cells: every combination, in the order in which reports show them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from cgverify.common.errors import NothingToVerifyError, UnknownNameError, UsageError
from cgverify.common.records import EAGER, Cell, Checkpoint, WeightsView
from cgverify.plan.axes import Axes, CheckpointAxes, Rule
from cgverify.plan.cases import (
    AFTER,
    BEFORE,
    CASE_KINDS,
    DECODED_TOKENS,
    DECODING,
    DEFAULT_CASES,
    EAGER_ONLY,
    FEW_LAYERS,
    FORCED_TOKENS,
    GENERATED_TOKENS,
    IN_BLOCK,
    KINDS,
    PER_LAYER,
    PROMPTED,
    SAMPLED,
    WHOLE,
)

IN_TURN = "in turn"
"""The view of a prompt's cells, whose hidden states go through all other views."""


def weights_view(cell: Cell) -> WeightsView:
    """Return the weights that must be in view for a cell."""
    if cell.prompt:
        return IN_TURN
    return cell.kind if cell.layer is None else cell.layer


def plan(
    requests: Sequence[CheckpointAxes], found: Mapping[tuple[str, str], Checkpoint], exclude: Sequence[Rule] = ()
) -> list[Cell]:
    """Return the cells of all requests, each once, checkpoint by checkpoint in the order of their first requests.

    Args:
        found: by the model and weights of the requests.
        exclude: rules that leave cells out.

    Raises:
        UsageError: see `cells`.
        NothingToVerifyError: every cell is excluded.
    """
    planned: dict[str, Cell] = {}
    for key in dict.fromkeys((request.model, request.weights) for request in requests):
        for request in requests:
            if (request.model, request.weights) != key:
                continue
            axes, rules = request.axes, exclude
            if not found[key].n_layers:
                axes, rules = _one_cell_per_setting(axes), [rule for rule in exclude if rule.is_about_settings]
            own = cells(found[key], axes)
            planned |= {cell.id: cell for cell in own if not any(rule.fits(cell) for rule in rules)}
    if not planned:
        raise NothingToVerifyError("The plan is empty: every cell is excluded.")
    return list(planned.values())


def _one_cell_per_setting(axes: Axes) -> Axes:
    """Return axes with one cell per setting, which reports the error of a checkpoint whose shape is unknown."""
    one = {"layers": [], "components": ["embed"], "cases": ["default"], "seeds": axes.seeds[:1]}
    return axes.model_copy(update=one)


def cells(checkpoint: Checkpoint, axes: Axes) -> list[Cell]:
    """Return the cells of one checkpoint, in report order.

    Each cell of a case with a prompt is planned once, since a prompt is one sequence: seeds, batch size and sequence
    length of random inputs do not apply to it. A case in `FEW_LAYERS` is planned for as many layers, evenly spread,
    unless `axes` names layers. If the cases are those of a plain run, those in `SAMPLED` are planned for one layer.

    Raises:
        UsageError: a layer or position that the checkpoint does not have, a case that needs a prompt if there is none,
            or a component glob that matches nothing.
    """
    layers = _spread(range(checkpoint.n_layers) if axes.layers is None else axes.layers, axes.limits.layers)
    layers_of = {case: layers if axes.layers else _spread(layers, FEW_LAYERS.get(case)) for case in axes.cases}
    for layer in layers:
        if not 0 <= layer < checkpoint.n_layers:
            raise UsageError(
                f"{checkpoint.name} has no layer {layer}: choose layers between 0 and {checkpoint.n_layers - 1}."
            )
    _require_positions(checkpoint, axes)
    if EAGER not in axes.attentions and set(axes.cases) <= set(EAGER_ONLY):
        raise UsageError(
            f"Of the cases asked for, none can be verified with {', '.join(axes.attentions)} attention: add eager, or "
            f"a case other than {' and '.join(EAGER_ONLY)}."
        )
    rotary_dims = dict.fromkeys(checkpoint.rotary_dim if dim == "own" else dim for dim in axes.rotary_dims or ["own"])
    planned = [
        Cell(
            model=checkpoint.name,
            weights=checkpoint.digest,
            layer=layer,
            kind=kind,
            candidate=candidate,
            dtype=dtype,
            device=device,
            rotary_dim=rotary_dim,
            attention=attention,
            case=case,
            **inputs,
        )
        for candidate, dtype, device, rotary_dim, attention in product(
            axes.candidates, axes.dtypes, axes.devices, rotary_dims, axes.attentions
        )
        for layer, kind in _components(layers)
        for case in axes.cases
        if kind in CASE_KINDS[case] and (attention == EAGER or case not in EAGER_ONLY)
        if layer is None or layer in layers_of[case]
        for inputs in _inputs(checkpoint, case, axes)
    ]
    _require_matches(planned, axes.components)
    selected = [cell for cell in planned if _is_selected(cell, axes.components)]
    if set(axes.cases) == set(DEFAULT_CASES):
        selected = _sampled(selected)
    blocks = {(cell.case, cell.layer) for cell in selected if cell.kind == "block"}
    return [
        cell
        for cell in selected
        if cell.kind not in IN_BLOCK.get(cell.case, ()) or (cell.case, cell.layer) not in blocks
    ]


def _spread(layers: Sequence[int], most: int | None) -> Sequence[int]:
    """Return at most so many layers, evenly spread, with the first and the last: 3 of 0 … 33 are 0, 16 and 33."""
    if most is None or most >= len(layers):
        return layers
    if most == 1:
        return layers[:1]
    return [layers[place * (len(layers) - 1) // (most - 1)] for place in range(most)]


def _sampled(selected: Sequence[Cell]) -> list[Cell]:
    """Return the cells of a plain run: of the cases in `SAMPLED`, those of their kinds in the middle layer."""
    fit = [cell for cell in selected if cell.kind in SAMPLED.get(cell.case, KINDS)]
    middle = {}
    for case in SAMPLED:
        if layers := sorted({cell.layer for cell in fit if cell.case == case and cell.layer is not None}):
            middle[case] = layers[len(layers) // 2]
    return [cell for cell in fit if cell.layer == middle.get(cell.case, cell.layer)]


def _require_positions(checkpoint: Checkpoint, axes: Axes) -> None:
    """Raise UsageError if a sequence or the prompt has the wrong length, or if a prompt is needed and missing."""
    prompted = [case for case in axes.cases if case in PROMPTED]
    longest = axes.seq_len + (DECODED_TOKENS if set(axes.cases) & set(DECODING) else 0)
    if longest > checkpoint.n_positions and len(prompted) < len(axes.cases):
        raise UsageError(
            f"{checkpoint.name} has {checkpoint.n_positions} positions, and {longest} are asked for: "
            f"choose shorter sequences (the cases {' and '.join(DECODING)} add {DECODED_TOKENS} tokens)."
        )
    if not prompted:
        return
    if checkpoint.prompt is None:
        raise UsageError(
            f"The {'case' if len(prompted) == 1 else 'cases'} {' and '.join(prompted)} need a prompt, which only a "
            "checkpoint that is given by name can have: leave them out."
        )
    given = len(checkpoint.prompt.tokens)
    least, generated = (FORCED_TOKENS + 1, GENERATED_TOKENS) if "model" in prompted else (1, 0)
    if given < least:
        raise UsageError(f"The prompt has {given} tokens: give --prompt or --tokens with at least {least}.")
    if given + generated > checkpoint.n_positions:
        more = f" (the model case generates {generated} more)" if generated else ""
        raise UsageError(
            f"{checkpoint.name} has {checkpoint.n_positions} positions, and the prompt {given} tokens{more}: give a "
            "shorter --prompt or --tokens."
        )


def _components(layers: Sequence[int]) -> Iterator[tuple[int | None, str]]:
    yield from ((None, kind) for kind in BEFORE)
    yield from product(layers, PER_LAYER)
    yield from ((None, kind) for kind in (*AFTER, *WHOLE))


def _inputs(checkpoint: Checkpoint, case: str, axes: Axes) -> Iterator[dict[str, Any]]:
    """Yield the fields of cells that describe the inputs of a case."""
    prompt = checkpoint.prompt
    if prompt is not None and case in PROMPTED:
        yield {"seed": axes.seeds[0], "batch_size": 1, "seq_len": len(prompt.tokens), "prompt": prompt.digest}
        return
    for seed in axes.seeds:
        yield {"seed": seed, "batch_size": axes.batch_size, "seq_len": axes.seq_len}


def _is_selected(cell: Cell, globs: Sequence[str]) -> bool:
    return not globs or any(fnmatchcase(cell.component, g) or fnmatchcase(cell.kind, g) for g in globs)


def _require_matches(planned: Sequence[Cell], globs: Sequence[str]) -> None:
    """Raise UsageError for a glob that selects none of the cells."""
    names = list(dict.fromkeys(name for cell in planned for name in (cell.kind, cell.component)))
    for glob in globs:
        if any(fnmatchcase(name, glob) for name in names):
            continue
        if any(fnmatchcase(kind, glob) for kind in KINDS):
            raise UsageError(
                f"None of the cases asked for is for the component {glob!r}; known cases: {', '.join(CASE_KINDS)}."
            )
        raise UnknownNameError("component", glob, names)


@dataclass(frozen=True)
class Shard:
    """A part of a plan: number `index`, from 1, of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, planned: Sequence[Cell]) -> list[Cell]:
        """Return the shard's cells. All shards together are the plan, and no two have a cell in common.

        Cells that share weights stay together: the views of each checkpoint are distributed to the shards in turn,
        beginning with a shard that a hash of the checkpoint's name decides. So layers spread evenly, a checkpoint's
        cells are distributed in one way whatever else is in the plan, and no shard needs to know the weights.
        """
        views = dict.fromkeys((cell.model, weights_view(cell)) for cell in planned)
        next_shard: dict[str, int] = {}
        shards = {}
        for model, view in views:
            number = next_shard.setdefault(model, int(hashlib.sha256(model.encode()).hexdigest()[:8], 16))
            shards[model, view] = number % self.count
            next_shard[model] = number + 1
        return [cell for cell in planned if shards[cell.model, weights_view(cell)] == self.index - 1]
