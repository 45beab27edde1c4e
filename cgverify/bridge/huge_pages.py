"""Memory for large tensors, in huge pages if the system has them.

**Weights** are read whole for each token. With addresses translated by 2 MiB instead of 4 KiB that is a tenth faster.

**Results.** A C library returns allocations above 32 MiB to the system as soon as they are free. The next one comes in
pages of 4 KiB, and the first write to each page is a fault. For the scores of 2048 tokens, 268 MB in float32, the
faults take as long as the product itself. Here the last buffer is kept, and is used again for the next result of its
size once no tensor refers to it.

Storages from here cannot be resized.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

from cgverify.bridge.fast_path import allows_out, is_traced

LARGE_RESULT = 1 << 25
"""Bytes from which a freed result goes back to the system: the largest M_MMAP_THRESHOLD of glibc."""

HUGE_PAGE = 1 << 21
"""Bytes."""

_last: mmap.mmap | None = None
_idle_references = 0
"""The references to the last buffer while no tensor uses it. The number depends on the version of Python."""
_lock = Lock()


def result_buffer(*shape: int, dtype: torch.dtype, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return an uninitialised contiguous tensor to pass as `out=`, or None if torch should allocate the result itself.

    Args:
        inputs: what the result is computed from. All of them must allow an `out=`.
    """
    if is_traced():
        return None
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_RESULT or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    if any(tensor.device.type != "cpu" for tensor in inputs) or not allows_out(*inputs):
        return None
    with _lock:
        return torch.frombuffer(_reusable(size), dtype=dtype).view(shape)


def weight_buffer(*shape: int, like: Tensor) -> Tensor | None:
    """Return uninitialised memory for a weight in `like`'s dtype, never used again; None if small or not on the CPU."""
    size = math.prod(shape) * like.element_size()
    if size < HUGE_PAGE or like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    return torch.frombuffer(_map(size), dtype=like.dtype).view(shape)


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor.to(dtype)`."""
    out = None if tensor.dtype == dtype else result_buffer(*tensor.shape, dtype=dtype, inputs=(tensor,))
    return tensor.to(dtype) if out is None else out.copy_(tensor)


def _reusable(size: int) -> mmap.mmap:
    """Return the last buffer if it has this size and is idle, else a new one."""
    global _last, _idle_references
    if _last is None or len(_last) != size or sys.getrefcount(_last) > _idle_references:
        _last = _map(size)
        _idle_references = sys.getrefcount(_last)
    return _last


def _map(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without huge pages: small pages work as well, but slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
