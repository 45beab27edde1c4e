"""Redirect the output of other code from stdout to stderr."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, also for C code: the output of a candidate is not part of the report.

    If stdout was closed when Python started, its descriptor may belong to another file, and is not touched.
    """
    if sys.__stdout__ is None:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    kept = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)  # not 2, if stderr is closed
    try:
        _flush()
        _redirect()
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        try:
            _flush()
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _redirect() -> None:
    if sys.__stderr__ is not None:
        os.dup2(2, 1)
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _flush() -> None:
    """Write the buffers of Python and of C to the present target of stdout."""
    if sys.stdout is not None:
        sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
