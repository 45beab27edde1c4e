"""A stage computed rightly, and its result off by a factor."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from cgverify.oracle.arithmetic import Expected
from cgverify.verification.check import visible
from cgverify.verification.diagnosis.failed import Failed

FEWEST = 8
"""Elements that must agree on one factor."""


def scaled(broke: Failed) -> Iterator[str]:
    """The tap as c·o: c is one that scores are known to be scaled with, or else what fits the elements that are seen.

    With c fitted as Σ t·o / Σ o², the bounds B of the elements leave it uncertain by up to Σ B|o| / Σ o².
    """
    value, bound, tap = broke.answer.value, broke.answer.bound, broke.tap.to(torch.float64)
    seen = visible(broke.stage, broke.view)
    hidden = torch.zeros_like(value, dtype=torch.bool) if seen is None else ~seen.expand(value.shape)
    if broke.stage.name == "scores":
        for name, factor in _known(broke).items():
            if broke.agrees(_times(broke.answer, factor, 0.0, hidden)):
                yield name
    if int(((value != 0) & ~hidden).sum()) < FEWEST:
        return
    square = value.masked_fill(hidden, 0).square().sum()
    factor = float((tap * value).masked_fill(hidden, 0).sum() / square)
    uncertain = float((bound * value.abs()).masked_fill(hidden, 0).sum() / square)
    told_from_one = math.isfinite(factor) and abs(factor) > uncertain and abs(factor - 1) > 2 * uncertain
    if told_from_one and broke.agrees(_times(broke.answer, factor, uncertain, hidden)):
        opposite = abs(factor + 1) <= uncertain
        yield "the sign is reversed" if opposite else f"scaled by {_written(factor, uncertain)}"


def _times(answer: Expected, factor: float, uncertain: float, hidden: torch.Tensor) -> Expected:
    """factor · o. A hidden element is as low as its mask makes it, whether before or after the factor."""
    value = answer.value * factor
    bound = abs(factor) * answer.bound + uncertain * answer.value.abs()
    lowest = torch.finfo(answer.dtype).max if answer.dtype.is_floating_point else 0.0
    return Expected(value, torch.where(hidden, lowest, bound), answer.dtype)


def _known(broke: Failed) -> dict[str, float]:
    """Divisors that are taken for √head_dim, with the factor that each makes of the scores."""
    rotated = broke.view.get(broke.stage.tap.replace("hook_attn_scores", "hook_rot_q"))
    if rotated is None:
        return {}
    heads, size = rotated.shape[-2:]
    rotary = broke.parameters.tensor("attn.table").shape[-1]
    factors = {
        "not scaled": size**0.5,
        "scaled by 1/head_dim instead of 1/sqrt(head_dim)": size**-0.5,
        "scaled by 1/sqrt(d_model) instead of 1/sqrt(head_dim)": heads**-0.5,
        "scaled by 1/sqrt(n_heads) instead of 1/sqrt(head_dim)": (size / heads) ** 0.5,
        "scaled by 1/sqrt(rotary_dim) instead of 1/sqrt(head_dim)": (size / rotary) ** 0.5,
    }
    return {name: factor for name, factor in factors.items() if factor != 1}


def _written(factor: float, uncertain: float) -> str:
    """Two digits of what tells a factor from 1, as far as they are certain: `1.001`, `1.00024`, `-0.5`, `5.7`."""
    certain = math.floor(-math.log10(max(uncertain, 1e-15)))
    decimals = min(certain, 1 + math.ceil(-math.log10(abs(factor - 1))))
    return f"{round(factor, max(1, decimals)):g}" if decimals < 5 else f"{factor:.{decimals}f}".rstrip("0")
