"""How a bridge in TransformerLens's compatibility mode is verified.

That mode processes the weights (layer norms are folded into them, means subtracted) and changes the masks, so such a
bridge cannot be compared with Hugging Face's tensors. Two questions are asked instead. Do the processed weights do what
the reference's do, weight by weight (`ProcessedWeights`)? And does the bridge, stage by stage, compute with its
weights what Hugging Face's own modules compute with the same weights (`processed_reference`)? Both sides are given the
model's masks, which hide with the lowest finite value, and both must hide with −∞ (`cgverify.observe.infinite_masks`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from cgverify.bridge.qkv_layout import join_features, join_weight
from cgverify.common.records import Finding, Verdict
from cgverify.observe.components import COMPONENTS
from cgverify.observe.infinite_masks import hide_with_infinity
from cgverify.oracle import folding
from cgverify.oracle.arithmetic import Expected
from cgverify.oracle.folding import IN, OUT
from cgverify.oracle.parameters import Parameters
from cgverify.verification.metrics import errors, worst_ratio

SHARED_MODULES = ("embed", "ln1", "attn.o", "mlp.in", "mlp.out", "ln_final", "unembed")
"""The components that have one module with a weight on each side; q, k and v are one module on the reference's."""


def processed_reference(reference: nn.Module, bridge: nn.Module) -> nn.Module:
    """Return a copy of a one-block reference with the weights of a bridge of that block; its sin/cos table is kept.

    Its attention hides keys with −∞, as attention of a bridge in compatibility mode does.

    Only the weights of q, k and v are copied, because they are joined; all others are shared with the bridge.
    """
    model = copy.deepcopy(reference, {id(weight): weight for weight in reference.parameters()})
    for kind in SHARED_MODULES:
        component = COMPONENTS[kind]
        source = _wrapped(bridge, component.bridge_path)
        _set(model.get_submodule(component.reference_path), source.weight, getattr(source, "bias", None))
    projections = [_wrapped(bridge, COMPONENTS[f"attn.{w}"].bridge_path) for w in "qkv"]
    fused = model.get_submodule(f"{COMPONENTS['attn'].reference_path}.qkv_proj")
    _set(fused, join_weight(*(linear.weight.detach() for linear in projections)), _joined_bias(projections))
    hide_with_infinity(model.get_submodule(COMPONENTS["attn"].reference_path))
    return model


def _wrapped(bridge: nn.Module, path: str) -> Any:
    """Return the module that a component of a bridge wraps."""
    return cast(Any, bridge.get_submodule(path)).original_component


def _joined_bias(projections: Sequence[Any]) -> torch.Tensor | None:
    """Join the biases of q, k and v to `[3 * d_model]`; None if none of them has one."""
    if all(linear.bias is None for linear in projections):
        return None
    zeros = torch.zeros_like(projections[0].weight[:, 0])
    return join_features(*(zeros if linear.bias is None else linear.bias.detach() for linear in projections))


def _set(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach(), requires_grad=False)


STAGE = "fold"


class _Fold(NamedTuple):
    norm: str | None
    """The layer norm before a weight, whose gain and shift may be folded into the weight."""
    axes: tuple[int, ...]
    """The axes of the weight over which the mean has no effect."""


FOLDS = {
    "embed": _Fold(None, (IN,)),  # its rows are what it writes
    **dict.fromkeys(("attn.q", "attn.k", "attn.v"), _Fold("ln1", (IN,))),
    "attn.o": _Fold(None, (OUT,)),
    "mlp.in": _Fold("ln1", (IN,)),
    "mlp.out": _Fold(None, (OUT,)),
    "unembed": _Fold("ln_final", (IN, OUT)),
}
"""The weights that processing changes."""


def _weights_of(kind: str) -> list[str]:
    """Return the weights of a component that processing changes."""
    return [name for name in FOLDS if name == kind or name.startswith(f"{kind}.") or (kind == "block" and "." in name)]


class ProcessedWeights:
    """The processed weights of one block and the reference's, each weight compared once."""

    def __init__(self, reference: Parameters, processed: Parameters) -> None:
        self._reference, self._processed = reference, processed
        self._known: dict[str, tuple[Finding, ...]] = {}

    def findings(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings about all weights of a component; none if processing changes none."""
        for name in _weights_of(kind):
            if name not in self._known:
                self._known[name] = tuple(self._compare(name))
        return tuple(finding for name in _weights_of(kind) for finding in self._known[name])

    def _compare(self, name: str) -> Iterator[Finding]:
        theirs, ours = self._reference.tensor(name), self._processed.tensor(name)
        if theirs.shape != ours.shape:
            message = f"{name}.weight has shape {list(ours.shape)}, the reference's {list(theirs.shape)}"
            tap, diverged = f"{name}.weight", Verdict.DIVERGED
            yield Finding(step="weights", tap=tap, stage=STAGE, verdict=diverged, r=math.inf, message=message)
            return
        norm, axes = FOLDS[name]
        found = folding.centred(ours, None if norm is None else self._processed.tensor(norm), axes)
        expected = folding.expected_weight(theirs, None if norm is None else self._reference.tensor(norm), axes)
        yield _finding(f"{name}.weight", found, expected, theirs.shape)
        if name not in ("embed", "attn.v"):  # what is left of v's bias is part of the output's
            value, allowed = self._offsets(name)
            yield _finding(f"{name}.bias", [value], [allowed], allowed.value.shape)

    def _offsets(self, name: str) -> tuple[torch.Tensor, Expected]:
        """Return a Linear's output for an input of zero, or of the mean of the norm before it, and what it must be."""
        reference, processed = self._reference, self._processed
        if FOLDS[name].norm is not None:
            value, expected = _offset_after_norm(processed, name), _expected_offset_after_norm(reference, name)
        elif name == "attn.o":  # the offset of v passes through a pattern whose rows sum to one
            before = _offset_after_norm(processed, "attn.v")
            value = folding.offset(processed.tensor(name), processed.bias(name), before)
            expected = _expected_offset(reference, name, _expected_offset_after_norm(reference, "attn.v"))
            bound = expected.bound + folding.off_by_weight(reference.tensor(name), before)
            expected = Expected(expected.value, bound, expected.dtype)
        else:
            value = processed.required_bias(name).to(torch.float64)
            weight = reference.tensor(name)
            zeros = weight.new_zeros(weight.shape[1], dtype=torch.float64)
            expected = _expected_offset(reference, name, Expected(zeros, zeros, weight.dtype))
        if OUT in FOLDS[name].axes:
            return value - value.mean(), folding.without_mean(expected)
        return value, expected


def _shift(parameters: Parameters, name: str) -> torch.Tensor:
    """Return the shift of the norm before a weight, which is the norm's mean."""
    return parameters.required_bias(str(FOLDS[name].norm))


def _offset_after_norm(parameters: Parameters, name: str) -> torch.Tensor:
    return folding.offset(parameters.tensor(name), parameters.bias(name), _shift(parameters, name))


def _expected_offset_after_norm(parameters: Parameters, name: str) -> Expected:
    shift = _shift(parameters, name).to(torch.float64)
    return _expected_offset(parameters, name, Expected(shift, torch.zeros_like(shift), torch.float32))


def _expected_offset(parameters: Parameters, name: str, shift: Expected) -> Expected:
    return folding.expected_offset(parameters.tensor(name), parameters.bias(name), shift, parameters.shortcuts)


def _finding(tap: str, found: Iterable[torch.Tensor], expected: Iterable[Expected], shape: tuple[int, ...]) -> Finding:
    """Compare a weight or an offset, given in blocks of rows."""
    r, error, at, start = 0.0, 0.0, 0, 0
    for value, answer in zip(found, expected, strict=True):
        off = errors(value, answer)
        worst = worst_ratio(off, answer)
        if worst.value > r:
            r, at = worst.value, start + worst.index
        error, start = max(error, float(off.max())), start + off.numel()
    place = f"output {at}" if len(shape) == 1 else f"output {at // shape[1]}, input {at % shape[1]}"
    is_within = r <= 1
    return Finding(
        step="weights",
        tap=tap,
        stage=STAGE,
        verdict=Verdict.BOUNDED if is_within else Verdict.DIVERGED,
        r=r,
        candidate_error=error,
        shape=tuple(shape),
        at=place,
        message=""
        if is_within
        else f"{tap} is not the reference's, folded: off by {r:.3g} times its bound at {place} (or the reference's was "
        "edited after the bridge was booted)",
    )
