"""Memory for large tensors, in huge pages where the system has them.

**Weights** that are read whole for each token are read a tenth faster where addresses are translated by 2 MiB and not
by 4 KiB.

**Results.** A C library gives what is larger than 32 MiB back to the system as soon as it is free, and asks for it anew
the next time, in pages of 4 KiB, each of which costs a fault at the first write to it. For the scores of 2048 tokens,
268 MB in float32, that takes as long as the product itself. Here the last piece is kept for the next result of its
size, as soon as no tensor holds it any more.

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

from cgverify.bridge.listeners import takes_out

LARGE = 1 << 25
"""Bytes of a result from which memory is not used again by itself: the largest M_MMAP_THRESHOLD of glibc."""

HUGE_PAGE = 1 << 21
"""Bytes."""

_last: mmap.mmap | None = None
_unheld = 0
"""References to the last piece before any tensor held it: how many there are is a matter of the Python version."""
_lock = Lock()


def room_for(*shape: int, dtype: torch.dtype, of: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """An uninitialised contiguous tensor to be passed as `out=`, or None where torch does as well by itself.

    Args:
        of: what the result is computed from, all of which must allow an `out=`.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    if any(tensor.device.type != "cpu" for tensor in of) or not takes_out(*of):
        return None
    with _lock:
        return torch.frombuffer(_memory(size), dtype=dtype).view(shape)


def lasting(*shape: int, like: torch.Tensor) -> torch.Tensor | None:
    """The same for what is read often, such as a weight, in `like`'s dtype: memory of its own."""
    size = math.prod(shape) * like.element_size()
    if size < HUGE_PAGE or like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    return torch.frombuffer(_mapped(size), dtype=like.dtype).view(shape)


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`."""
    room = None if tensor.dtype == dtype else room_for(*tensor.shape, dtype=dtype, of=(tensor,))
    return tensor.to(dtype) if room is None else room.copy_(tensor)


def _memory(size: int) -> mmap.mmap:
    """Bytes that no tensor holds: the last ones, or new ones."""
    global _last, _unheld
    if _last is None or len(_last) != size or _references() > _unheld:
        _last = _mapped(size)
        _unheld = _references()
    return _last


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel built without huge pages: small ones hold the same numbers
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _references() -> int:
    return sys.getrefcount(_last)
