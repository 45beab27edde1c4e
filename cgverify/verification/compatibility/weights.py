"""Whether a processed bridge's weights do what the reference's do: findings of the stage `fold`, weight by weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from cgverify.common.records import Finding, Verdict
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.folding import (
    IN,
    OUT,
    centred,
    expected_offset,
    expected_weight,
    off_by_weight,
    offset,
    without_mean,
)
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import errors, worst_ratio

STAGE = "fold"

HELD: dict[str, tuple[str, ...]] = {
    "embed": ("embed",),
    **{kind: (kind,) for kind in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out")},
    "attn": ("attn.q", "attn.k", "attn.v", "attn.o"),
    "mlp": ("mlp.in", "mlp.out"),
    "block": ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.in", "mlp.out"),
    "unembed": ("unembed",),
}
"""By kind of component: the weights that processing changes."""

_NORM = {"attn.q": "ln1", "attn.k": "ln1", "attn.v": "ln1", "mlp.in": "ln1", "unembed": "ln_final"}
"""The layer norm before a weight, whose gain and shift may be folded into it."""

_AXES = {
    **dict.fromkeys(("attn.q", "attn.k", "attn.v", "mlp.in"), (IN,)),
    **dict.fromkeys(("attn.o", "mlp.out"), (OUT,)),
    "embed": (IN,),  # its rows are what is written
    "unembed": (IN, OUT),
}
"""Over which axes of a weight the mean has no effect."""


class Folding:
    """The processed weights of one view, held against the reference's; each is asked about once."""

    def __init__(self, reference: Parameters, processed: Parameters) -> None:
        self._reference, self._processed = reference, processed
        self._known: dict[str, tuple[Finding, ...]] = {}

    def findings(self, kind: str) -> tuple[Finding, ...]:
        """Of all weights of a component; none where processing changes none."""
        return tuple(finding for name in HELD.get(kind, ()) for finding in self._of(name))

    def _of(self, name: str) -> tuple[Finding, ...]:
        if name not in self._known:
            self._known[name] = tuple(self._checked(name))
        return self._known[name]

    def _checked(self, name: str) -> Iterator[Finding]:
        theirs, ours = (side.tensor(name) for side in (self._reference, self._processed))
        if theirs.shape != ours.shape:
            yield _failed(f"{name}.weight", f"has shape {list(ours.shape)}, the reference's {list(theirs.shape)}")
            return
        axes = _AXES[name]
        found = centred(ours, _gain(self._processed, name), axes)
        yield _finding(
            f"{name}.weight", found, expected_weight(theirs, _gain(self._reference, name), axes), theirs.shape
        )
        if name not in ("embed", "attn.v"):  # what of v's bias is left is judged with the output's
            value, expected = self._offsets(name)
            yield _finding(f"{name}.bias", [value], [expected], expected.value.shape)

    def _offsets(self, name: str) -> tuple[torch.Tensor, Expected]:
        """What a Linear gives for an input of zero (behind a norm: of the norm's mean), and what it must be."""
        if name in _NORM:
            value, expected = _through_norm(self._processed, name), _expected_through_norm(self._reference, name)
        elif name == "attn.o":  # a value's offset is mixed by a pattern whose rows sum to one
            before = _through_norm(self._processed, "attn.v")
            value = offset(self._processed.tensor(name), self._processed.bias(name), before)
            weight = self._reference.tensor(name)
            expected = expected_offset(
                weight,
                self._reference.bias(name),
                _expected_through_norm(self._reference, "attn.v"),
                self._reference.shortcuts,
            )
            bound = expected.bound + off_by_weight(weight, before)
            expected = Expected(expected.value, bound, expected.dtype)
        else:
            weight, shift = self._reference.tensor(name), self._reference.required_bias(name)
            value = self._processed.required_bias(name).to(torch.float64)
            nothing = weight.new_zeros(weight.shape[1], dtype=torch.float64)
            expected = expected_offset(
                weight, shift, Expected(nothing, nothing, weight.dtype), self._reference.shortcuts
            )
        if OUT in _AXES[name]:
            return value - value.mean(), without_mean(expected)
        return value, expected


def _gain(parameters: Parameters, name: str) -> torch.Tensor | None:
    return parameters.tensor(_NORM[name]) if name in _NORM else None


def _through_norm(parameters: Parameters, name: str) -> torch.Tensor:
    return offset(parameters.tensor(name), parameters.bias(name), parameters.required_bias(_NORM[name]))


def _expected_through_norm(parameters: Parameters, name: str) -> Expected:
    shift = parameters.required_bias(_NORM[name]).to(torch.float64)
    return expected_offset(
        parameters.tensor(name),
        parameters.bias(name),
        Expected(shift, torch.zeros_like(shift), torch.float32),
        parameters.shortcuts,
    )


def _finding(tap: str, found: Iterable[torch.Tensor], expected: Iterable[Expected], shape: tuple[int, ...]) -> Finding:
    r, error, at, start = 0.0, 0.0, 0, 0
    for value, answer in zip(found, expected, strict=True):
        off = errors(value, answer)
        worst = worst_ratio(off, answer)
        if worst.value > r:
            r, at = worst.value, start + worst.index
        error, start = max(error, float(off.max())), start + off.numel()
    place = f"output {at}" if len(shape) == 1 else f"output {at // shape[1]}, input {at % shape[1]}"
    held = r <= 1
    return Finding(
        step="weights",
        tap=tap,
        stage=STAGE,
        verdict=Verdict.BOUNDED if held else Verdict.DIVERGED,
        r=r,
        candidate_error=error,
        shape=tuple(shape),
        at=place,
        message="" if held else f"{tap} is not the reference's, folded: off by {r:.3g} times its bound at {place}",
    )


def _failed(tap: str, what: str) -> Finding:
    return Finding(step="weights", tap=tap, stage=STAGE, verdict=Verdict.DIVERGED, r=math.inf, message=f"{tap} {what}")
