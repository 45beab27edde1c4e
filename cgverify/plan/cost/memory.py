"""The peak memory of a run, estimated before it starts. It is meant as an upper figure.

Memory depends on the largest view of the weights in its largest setting, and not on the whole checkpoint:

    peak = libraries + weights + taps + scratch

    weights    P·stored + P·width (unless stored with that width) + P·width + 6·d²·width:
               as read, the reference's, the candidate's, and Q, K, V split from the fused weight for both;
               on another device than the CPU as read and for the oracle alone, P·stored + P·width (unless
               stored with that width) + 3·d²·width
    taps       tensors of both sides are kept until the cells of a batch are judged
    scratch    float64 values and bounds of the largest tap, while it is judged

P is the number of weights in view. The constants were fitted to whole runs (docs/scale.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cgverify.checkpoint.names import block_parameters, parameters
from cgverify.common.records import Cell, Checkpoint
from cgverify.plan.cases import DECODED_TOKENS, DECODING, FORCED_TOKENS, SIZES, WHOLE

if TYPE_CHECKING:  # it imports torch
    from cgverify.checkpoint.lookup import FoundCheckpoints

LIBRARIES = 620_000_000
"""Bytes of Python, torch, transformers and TransformerLens, with buffers and findings."""

LINEAR_TAPS = {"attn": 40, "block": 78, "mlp": 24, "mlp.in": 10, "mlp.out": 10}
"""Rows of n_embd numbers that both sides keep of a token in one forward; 6 for other kinds."""

SQUARE_TAPS = 12
"""Numbers that both sides keep of a pair of tokens and a head in one forward of attention or block: scores, pattern,
returned pattern, mask, and copies of them."""

HEAD_TAPS = 15
"""Rows of n_embd numbers that the candidate keeps of a token and a head in the case `gated`."""

KEPT_FORWARDS = {"decode": 3, "gated": 3, "patched": 25, "autocast": 4, "model": 1 + FORCED_TOKENS} | {
    "shapes": 2,
    "state": 7,
    "data": 6,
}
"""Whole forwards of both sides whose taps are kept; 1 for other cases. `patched` keeps only the candidate's, and most
of its forwards take half of the tokens."""

BACKWARD_COPIES = 12
"""Copies of the weights in float64 that the oracle of the case `backward` makes."""

TABLES = 5
"""Sin/cos tables in float32: both sides', and what is computed on the way to one."""

SCRATCH = 8
"""Arrays in float64 of the largest tap's size, while it is judged."""

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def peak_bytes(checkpoint: Checkpoint, cells: Iterable[Cell], stored_width: int = 4) -> int:
    """Return the bytes that a process takes at most for cells of one checkpoint.

    Args:
        stored_width: bytes of a weight as it is stored.
    """
    batches: defaultdict[tuple[object, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.kind not in WHOLE:  # a whole model is booted only if it fits
            view = cell.kind if cell.layer is None else cell.layer
            variant = cell.dtype, cell.device, cell.rotary_dim, cell.attention
            batches[view, bool(cell.prompt), *variant].append(cell)
    return LIBRARIES + max((_batch_bytes(checkpoint, batch, stored_width) for batch in batches.values()), default=0)


def peaks(found: FoundCheckpoints, planned: Sequence[Cell]) -> dict[str, int]:
    """Return the peak memory of each available checkpoint of a plan, by digest."""
    return {
        checkpoint.digest: peak_bytes(
            checkpoint,
            [cell for cell in planned if cell.weights == checkpoint.digest],
            found.sources[key].stored_width,
        )
        for key, checkpoint in found.checkpoints.items()
        if key in found.sources
    }


def weights_in_view(checkpoint: Checkpoint, cell: Cell) -> int:
    """Return the number of weights in the view of a cell."""
    if cell.layer is not None:
        return block_parameters(checkpoint)
    if cell.kind in WHOLE:
        return parameters(checkpoint)
    return 2 * checkpoint.n_embd if cell.kind == "ln_final" else checkpoint.vocab_size * checkpoint.n_embd


def rows(cell: Cell) -> int:
    """Return the number of tokens in the forwards of a cell that follow each other."""
    batch, tokens = size(cell)
    return batch * (tokens + (DECODED_TOKENS if cell.case in DECODING else 0))


def size(cell: Cell) -> tuple[int, int]:
    """Return batch and tokens of the inputs of a cell."""
    return SIZES.get(cell.case, (cell.batch_size, cell.seq_len))


def _batch_bytes(checkpoint: Checkpoint, cells: list[Cell], stored_width: int) -> int:
    """Return the bytes of one view in one setting, without the libraries."""
    first = cells[0]
    weights, width = weights_in_view(checkpoint, first), WIDTHS[first.dtype]
    on_cpu = first.device == "cpu"  # on another device only the oracle's weights take this memory
    taken = weights * (stored_width + width * (on_cpu + (width != stored_width)))
    if first.layer is not None:
        taken += (6 if on_cpu else 3) * checkpoint.n_embd**2 * width
        rotated = checkpoint.n_embd if first.rotary_dim == "none" else first.rotary_dim
        taken += 4 * TABLES * checkpoint.n_positions * rotated
    if any(cell.case == "backward" for cell in cells):
        taken += 8 * BACKWARD_COPIES * weights
    taps = sum(_tap_bytes(checkpoint, cell) for cell in cells) // len({cell.candidate for cell in cells})
    return taken + taps + 8 * SCRATCH * max(_largest_tap(checkpoint, cell) for cell in cells)


def _tap_bytes(checkpoint: Checkpoint, cell: Cell) -> int:
    forwards = KEPT_FORWARDS.get(cell.case, 1)
    width = checkpoint.vocab_size if cell.kind == "unembed" else checkpoint.n_embd
    numbers = LINEAR_TAPS.get(cell.kind, 6) * rows(cell) * width * forwards
    if cell.kind in ("attn", "block"):
        numbers += SQUARE_TAPS * checkpoint.n_head * rows(cell) * size(cell)[1] * forwards
        if cell.case == "gated":
            numbers += HEAD_TAPS * checkpoint.n_head * rows(cell) * checkpoint.n_embd
    return 4 * numbers


def _largest_tap(checkpoint: Checkpoint, cell: Cell) -> int:
    """Return the numbers of a cell's largest tap. A product's are judged some columns at a time."""
    by_head = max(size(cell)[1], checkpoint.n_embd if cell.case == "gated" else 0)
    attends = cell.kind in ("attn", "block")
    return rows(cell) * max(checkpoint.n_embd, checkpoint.n_head * by_head if attends else 0)
