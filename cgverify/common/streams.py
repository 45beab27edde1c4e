"""Whose stdout is."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stdout_is_ours() -> Iterator[None]:
    """Whatever is written to stdout inside goes to stderr, also past Python: it is a candidate's, and no report.

    Where stdout was closed from the start, its descriptor may be another file's, and is left alone.
    """
    if sys.__stdout__ is None:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    kept = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)  # not 2, should stderr be closed
    try:
        _flush()
        _lead_away()
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        try:
            _flush()
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _lead_away() -> None:
    if sys.__stderr__ is not None:
        os.dup2(2, 1)
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _flush() -> None:
    """Write what waits in the buffers of Python and of C to where stdout leads now."""
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
