"""Find where Hugging Face's own tensors differ between two runs, for example with two versions of transformers.

The inputs of a cell follow from its description, so that a tensor of Hugging Face differs only if what computed it
differs. Findings keep a digest of it. By how much it differs is known if both runs kept the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cgverify.runs.comparison.pairs import TapPair


@dataclass(frozen=True)
class ReferenceChange:
    """A tap at which Hugging Face's tensor has other bits, another shape or another dtype."""

    pair: TapPair
    max_abs: float | None
    """The greatest absolute difference where both are finite and the mask hides nothing; None without kept tensors."""


def reference_changes(pairs: Iterable[TapPair], before: Path | None, after: Path | None) -> Iterator[ReferenceChange]:
    """Yield the changed tensors among pairs of taps, in their order. A run without digests has none.

    Args:
        before, after: the folders of both runs, in which their tensors may be.
    """
    for pair in pairs:
        if pair.before is None or pair.after is None:
            continue
        digests = pair.before.reference_digest, pair.after.reference_digest
        if all(digests) and digests[0] != digests[1]:
            yield ReferenceChange(pair, _distance(pair, before, after))


def _distance(pair: TapPair, before: Path | None, after: Path | None) -> float | None:
    if before is None or after is None or pair.before is None or pair.after is None:
        return None
    paths = before / pair.before.tensors, after / pair.after.tensors
    if not all(path.is_file() for path in paths):
        return None
    import torch  # a comparison of runs that kept no tensors needs no torch
    from safetensors import safe_open

    kept, mask = [], None
    for path in paths:
        with safe_open(path, "pt") as file:
            kept.append(file.get_tensor("reference").to(torch.float64))
            if pair.finding.stage == "scores" and "given.attention_mask" in file.keys():  # noqa: SIM118  no mapping
                mask = file.get_tensor("given.attention_mask")
    first, second = kept
    if first.shape != second.shape:
        return float("inf")
    difference = (second - first).abs()
    seen = difference.isfinite()
    if mask is not None:
        seen &= mask > torch.finfo(mask.dtype).min  # hidden scores are near the lowest value of the mask's dtype
    return float(difference[seen].max()) if bool(seen.any()) else 0.0
