"""Set up a process before it works: memory allocator, huge pages, garbage collection, warnings of libraries."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from cgverify.common.c_library import c_library

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""From glibc's malloc.h: bytes free at the heap's end that are not returned, and the most blocks outside the heap."""


def prefer_huge_pages() -> None:
    """Let torch ask for huge pages, into which weights are copied faster. Call this before torch is imported."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_memory() -> None:
    """Keep freed memory in this process, in huge pages, so that no timing includes a page fault.

    Call this before torch is imported. Without glibc only the huge pages are set.
    """
    prefer_huge_pages()
    tune = getattr(c_library(), "mallopt", None)
    if tune is not None:
        tune(M_MMAP_MAX, 0)
        tune(M_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import torch and its dependents without garbage collection, and exclude their objects from later collections.

    The imports create a million objects that live until the process ends, and every collection would visit them all.
    If torch is imported already, nothing changes.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def only_new_objects_collected() -> Iterator[None]:
    """Exclude the objects that exist now from garbage collections until the end.

    Each bridge that is freed needs a collection. In a process that has imported torch it visits a million objects, and
    takes 0.25 s instead of 0.01 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def hush_libraries() -> None:
    """Silence warnings and progress bars of libraries, which concern developers. -v shows them."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
