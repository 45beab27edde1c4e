"""Redirect the output of other code from stdout to stderr, and write UTF-8."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from cgverify.common.c_library import c_library


def use_utf8() -> None:
    """Write UTF-8 to pipes and files, unless PYTHONIOENCODING says otherwise. Windows has an older encoding there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="utf-8")


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr, also for C code: the output of a candidate is not part of the report.

    If stdout was closed when Python started, its descriptor may belong to another file, and is not touched.
    """
    if sys.__stdout__ is None:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    kept = _copy_of_stdout()
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


def _copy_of_stdout() -> int:
    """Return a descriptor of stdout's file that child processes do not inherit, above 2 even if stderr is closed."""
    copies = [os.dup(1)]
    while copies[-1] <= 2:
        copies.append(os.dup(1))
    for low in copies[:-1]:
        os.close(low)
    return copies[-1]


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
    c_library().fflush(None)
