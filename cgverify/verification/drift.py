"""How far the two sides have drifted apart on their way through a model: reported, never a failure.

Errors add up from layer to layer, and a bridge without a fault may end anywhere within their sum. So a carried tensor
has no bound. Whether each component was right is checked by its own stages.

| stage | compares |
|---|---|
| `carried` | what a component returned for a prompt on each side, and both with the float64 computation |
| `top_1` | the most probable next token at each position |
| `as_carried` | the candidate's whole model with what went through the window |
| `generation` | the tokens that both sides generated |
"""

from __future__ import annotations

from typing import Any

import torch

from cgverify.common.records import Finding, Verdict
from cgverify.plan.cases import AS_CARRIED, CARRIED, GENERATION, TOP_1
from cgverify.verification.metrics import Difference, difference, leading_bits, verdict


def carried(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> Finding:
    """Compare what a component returned for a prompt on both sides.

    Args:
        ours, theirs: `[1, seq, …]`, of one shape.
        exact: the float64 computation without rounding, of the same shape.
    """
    distance = difference(ours.to(theirs.dtype), theirs)
    error = _greatest_error(ours, exact)
    return _finding(
        "prompt",
        CARRIED,
        distance,
        candidate_error=error,
        reference_error=_greatest_error(theirs, exact),
        bits=leading_bits(error, float(exact.abs().max())),
        shape=tuple(ours.shape),
        at="" if distance.bitwise else f"position {distance.index // (ours.numel() // ours.shape[1])}",
    )


def top_1(ours: torch.Tensor, theirs: torch.Tensor) -> Finding:
    """Compare the most probable next token at every position.

    Args:
        ours, theirs: logits `[1, seq, vocabulary]`.
    """
    differ = (ours.argmax(-1) != theirs.argmax(-1)).flatten()
    message = f"top-1 agrees at {len(differ) - int(differ.sum())} of {len(differ)} positions"
    if differ.any():
        first = int(differ.nonzero()[0])
        message += f"; first apart at position {first}, {_margin(ours[0, first], theirs[0, first])}"
    said = Verdict.BOUNDED if differ.any() else Verdict.BITWISE
    return Finding(step="prompt", tap="top_1", stage=TOP_1, verdict=said, shape=tuple(differ.shape), message=message)


def as_carried(component: str, whole: torch.Tensor, carried: torch.Tensor) -> Finding:
    """Compare what a component of the candidate's whole model returned with what it returned in the window."""
    distance = difference(whole.to(carried.dtype), carried)
    return _finding(f"prompt {component}", AS_CARRIED, distance, shape=tuple(whole.shape))


def generation(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> Finding:
    """Compare the tokens that both sides generated.

    Args:
        ours, theirs: the logits `[vocabulary]` of each token, which is the greatest of them.
    """
    tokens, reference_tokens = ([int(logits.argmax()) for logits in side] for side in (ours, theirs))
    pairs = zip(tokens, reference_tokens, strict=False)
    alike = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(reference_tokens)))
    message = f"{alike} of {len(reference_tokens)} generated tokens alike"
    if tokens != reference_tokens and alike < len(tokens):
        margin = _margin(ours[alike], theirs[alike])
        message += f"; the next is {tokens[alike]} for {reference_tokens[alike]}, {margin}"
    return Finding(
        step="generated",
        tap="generated",
        stage=GENERATION,
        verdict=Verdict.BITWISE if tokens == reference_tokens else Verdict.BOUNDED,
        shape=(len(tokens),),
        message=message,
    )


def _finding(step: str, stage: str, distance: Difference, **figures: Any) -> Finding:
    """Report a distance with the strongest verdict that does not fail: a wrong component has failed on its own."""
    strongest = verdict(0.0, distance)
    return Finding(
        step=step,
        tap="returned",
        stage=stage,
        verdict=Verdict.BOUNDED if strongest.fails else strongest,
        max_abs=distance.max_abs,
        max_ulp=distance.max_ulp,
        **figures,
    )


def _greatest_error(state: torch.Tensor, exact: torch.Tensor) -> float:
    error = (state.to(torch.float64) - exact).abs()
    return float(error.nan_to_num(nan=torch.inf).max())


def _margin(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Say how close the reference's two best logits are, and how far the two sides are apart."""
    best, second = theirs.to(torch.float64).topk(2).values
    apart = float((ours.to(torch.float64) - theirs.to(torch.float64)).abs().max())
    return f"where the reference's two best logits are {float(best - second):.3g} and the sides {apart:.3g} apart"
