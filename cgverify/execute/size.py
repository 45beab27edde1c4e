"""How large a unit is: the weights that it has in view, and the memory that verifying it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cgverify.checkpoint.names import Architecture
from cgverify.execute.work import Unit, UnitView
from cgverify.records import Checkpoint

LIBRARIES = 700_000_000
"""Bytes that Python, torch, transformers and TransformerLens take, with the taps of a unit at a usual length."""

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def parameters(unit: Unit) -> int:
    """In view of a unit."""
    checkpoint = unit.checkpoint
    if unit.view == "ln_final":
        return 2 * checkpoint.n_embd
    if isinstance(unit.view, str):
        return checkpoint.vocab_size * checkpoint.n_embd
    return shape(checkpoint).block_parameters


def shape(checkpoint: Checkpoint) -> Architecture:
    return Architecture(
        n_embd=checkpoint.n_embd,
        n_layer=checkpoint.n_layers,
        n_head=1,  # the number of parameters does not depend on it
        rotary_dim=checkpoint.rotary_dim,
        hub=None,
        vocab_size=checkpoint.vocab_size,
    )


def heaviest_first(units: Sequence[Unit]) -> list[Unit]:
    """By views, the ones with the most cells over the most weights first, so that none is left over at the end."""
    weights = Counter[UnitView]()
    for unit in units:
        weights[unit.in_view] += len(unit.cells) * parameters(unit)
    return sorted(units, key=lambda unit: -weights[unit.in_view])


def memory(unit: Unit) -> int:
    """Bytes that a worker needs for a unit: an upper figure for short probes.

        libraries + P·4 + P·width·(2 + 1/4) + P·8·8 with gradients        P: parameters in view

    That is: the weights as they are read, the reference's and the candidate's, of which Q, K and V are split from the
    fused weight, a quarter of a block; and for gradients what autograd keeps in float64.
    """
    width = WIDTHS[unit.dtype]
    of_gradients = 64 if any(cell.case == "backward" for cell in unit.cells) else 0
    return LIBRARIES + int(parameters(unit) * (4 + 2.25 * width + of_gradients))
