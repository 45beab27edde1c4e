"""How far two sides have drifted apart on their way through a model: reported, and never a failure.

Errors pile up from layer to layer, and a fault-free bridge may end anywhere within what they add up to. So no bound is
asked of a carried tensor; whether each step was right is asked by the stages of its component.

| stage | compares |
|---|---|
| `carried` | what a component made of the prompt, each side on its own way there; and both without rounding |
| `top_1` | the most probable next token at each position |
| `as_carried` | the candidate's whole model with what came through the window |
| `generation` | the tokens that both sides generated |
"""

from __future__ import annotations

import torch

from cgverify.common.records import Finding, Verdict
from cgverify.plan.cells import AS_CARRIED, CARRIED, GENERATION, TOP_1
from cgverify.verification.metrics import Difference, difference, verdict
from cgverify.verification.trusted_bits import leading_bits


def carried(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> Finding:
    """What a component made of a prompt, on both sides.

    Args:
        ours, theirs: `[1, seq, …]`, in one shape.
        exact: without rounding, in float64.
    """
    against = difference(ours.to(theirs.dtype), theirs)
    error, reference_error = _farthest(ours, exact), _farthest(theirs, exact)
    return Finding(
        step="prompt",
        tap="returned",
        stage=CARRIED,
        verdict=_reported(against),
        max_abs=against.max_abs,
        max_ulp=against.max_ulp,
        candidate_error=error,
        reference_error=reference_error,
        bits=leading_bits(error, float(exact.abs().max())),
        shape=tuple(ours.shape),
        at="" if against.bitwise else f"position {against.index // (ours.numel() // ours.shape[1])}",
    )


def top_1(ours: torch.Tensor, theirs: torch.Tensor) -> Finding:
    """Whether the most probable next token is the same at every position.

    Args:
        ours, theirs: logits `[1, seq, vocabulary]`.
    """
    differ = (ours.argmax(-1) != theirs.argmax(-1)).flatten()
    message = f"top-1 agrees at {len(differ) - int(differ.sum())} of {len(differ)} positions"
    if differ.any():
        first = int(differ.nonzero()[0])
        message += f"; first apart at position {first}, {_nearness(ours[0, first], theirs[0, first])}"
    said = Verdict.BOUNDED if differ.any() else Verdict.BITWISE
    return Finding(step="prompt", tap="top_1", stage=TOP_1, verdict=said, shape=tuple(differ.shape), message=message)


def as_carried(component: str, whole: torch.Tensor, carried: torch.Tensor) -> Finding:
    """What a component of the candidate's whole model made of a prompt, beside what came through the window."""
    against = difference(whole.to(carried.dtype), carried)
    return Finding(
        step=f"prompt {component}",
        tap="returned",
        stage=AS_CARRIED,
        verdict=_reported(against),
        max_abs=against.max_abs,
        max_ulp=against.max_ulp,
        shape=tuple(whole.shape),
    )


def generation(
    ours: list[int], theirs: list[int], our_logits: list[torch.Tensor], their_logits: list[torch.Tensor]
) -> Finding:
    """Whether both sides generated the same tokens.

    Args:
        our_logits, their_logits: the `[vocabulary]` that each token is the greatest of.
    """
    alike = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    same = ours == theirs
    message = f"{alike} of {len(theirs)} generated tokens alike"
    if not same and alike < len(ours):
        nearness = _nearness(our_logits[alike], their_logits[alike])
        message += f"; the next is {ours[alike]} for {theirs[alike]}, {nearness}"
    return Finding(
        step="generated",
        tap="generated",
        stage=GENERATION,
        verdict=Verdict.BITWISE if same else Verdict.BOUNDED,
        shape=(len(ours),),
        message=message,
    )


def _reported(against: Difference) -> Verdict:
    """The strongest verdict that is true if every step held; where one did not, it has failed itself."""
    said = verdict(0.0, against)
    return Verdict.BOUNDED if said.fails else said


def _farthest(state: torch.Tensor, exact: torch.Tensor) -> float:
    error = (state.to(torch.float64) - exact).abs()
    return float(error.nan_to_num(nan=torch.inf).max())


def _nearness(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """How near a tie was, beside how far the logits are apart."""
    best, second = theirs.to(torch.float64).topk(2).values
    apart = float((ours.to(torch.float64) - theirs.to(torch.float64)).abs().max())
    return f"where the reference's two best logits are {float(best - second):.3g} and the sides {apart:.3g} apart"
