"""The key-value cache: its old contents and the new rows, cast to the model's dtype. Nothing else may change.

A cache that grows has the new rows last. One of fixed size has them from a place on, and zeros where nothing is yet.

A cast is one rounding and has one right answer (B = 0). If the rotated key was not observed, the rotation's bound β
comes before the cast: B = R(o, β).
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import Expected, cast, exact_output


def cached(before: torch.Tensor | None, new: Expected, dtype: torch.dtype) -> Expected:
    """Return `before` with `new` appended, in `dtype`. All are `[batch, heads, keys, head_dim]`."""
    added = cast(new, dtype)
    if before is None:
        return added
    kept = exact_output(before, dtype)
    return Expected(torch.cat((kept.value, added.value), dim=-2), torch.cat((kept.bound, added.bound), dim=-2), dtype)


def placed(before: torch.Tensor | None, new: Expected, start: int, size: int, dtype: torch.dtype) -> Expected:
    """Return `before`, or zeros for `size` keys, with `new` from the key `start` on. See `cached`."""
    added = cast(new, dtype)
    if before is None:
        batch, heads, _, head_dim = added.value.shape
        before = torch.zeros(batch, heads, size, head_dim, dtype=dtype)
    kept, rows = exact_output(before, dtype), slice(start, start + added.value.shape[-2])
    kept.value[..., rows, :], kept.bound[..., rows, :] = added.value, added.bound
    return kept
