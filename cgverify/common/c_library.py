"""The C library of this process, whose buffers and memory some modules must reach."""

from __future__ import annotations

import ctypes


def c_library() -> ctypes.CDLL:
    """Return the C library. A function that this system lacks is an AttributeError."""
    try:
        return ctypes.CDLL(None)
    except TypeError:  # Windows has no library without a name
        return ctypes.CDLL("ucrtbase")
