"""Comparison of tensors bit by bit. Any NaN equals any NaN."""

from __future__ import annotations

import hashlib

import torch

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def ulp_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the number of steps between representable values from x to y, of one dtype, as float64.

    +0 and -0 are at distance 0, and so are two NaNs. A NaN is infinitely far from a number. In float32, 1.0 and
    1.0000001 are at distance 1.
    """
    if not x.is_floating_point():
        return (x != y).to(torch.float64)
    a, b = _ordered(x).to(torch.int64), _ordered(y).to(torch.int64)
    exact = (a - b).to(torch.float64).abs()
    # Across zero the difference of two float64 may not fit into 64 bits, and a few steps do not matter there.
    distance = torch.where((a < 0) == (b < 0), exact, a.to(torch.float64).abs() + b.to(torch.float64).abs())
    distance = torch.where(x.isnan() ^ y.isnan(), torch.inf, distance)
    return torch.where(x.isnan() & y.isnan(), 0.0, distance)


def same_tensor(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Return whether two tensors have one shape, one dtype and the same bits. Any NaN equals any NaN."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    # Most pairs are equal in every bit, NaNs included: one pass finds that, without a tensor of booleans.
    return torch.equal(_as_integers(x), _as_integers(y)) or bool(same_bits(x, y).all())


def digest(x: torch.Tensor) -> str:
    """Return twelve hex digits that are equal for tensors of one shape, one dtype and the same bits."""
    form = f"{x.dtype} {tuple(x.shape)} ".encode()
    return hashlib.sha256(form + x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:12]


def equal_values(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return elementwise whether the values are equal (+0 equals -0) or both NaN."""
    return (x == y) | (x.isnan() & y.isnan())


def same_bits(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return elementwise whether the bits are equal (+0 is not -0) or both values are NaN."""
    if not x.is_floating_point():
        return x == y
    same = _as_integers(x) == _as_integers(y)
    return same if bool(same.all()) else same | (x.isnan() & y.isnan())


def _ordered(x: torch.Tensor) -> torch.Tensor:
    """Return integers in the order of the floats. Negative ones are mirrored, so that -0 equals +0."""
    integers = _as_integers(x)
    lowest = torch.iinfo(integers.dtype).min
    return torch.where(integers < 0, lowest - integers, integers)


def _as_integers(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(_INTEGERS[x.element_size()])
