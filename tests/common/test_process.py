"""The setup of a process before it works."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest

from cgverify.common.process import only_new_objects_collected, uncollected

SCRIPT = """
import gc
from cgverify.common.process import uncollected
passes = []
gc.callbacks.append(lambda phase, info: passes.append(phase))
with uncollected():
    kept = [[n] for n in range(100_000)]
    during = len(passes)
print(during, gc.isenabled(), gc.get_freeze_count() > 100_000)
try:
    with uncollected():
        raise ImportError
except ImportError:
    print(gc.isenabled())
"""


def test_imported_objects_are_never_collected() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True", "True"]


FAULTS = """
import resource, sys
from cgverify.common.process import keep_memory
if sys.argv[1] == "kept": keep_memory()
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(6)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_kept_memory_has_no_second_page_fault() -> None:
    """Write to each page of 64 MiB, in a process that keeps freed memory and in one that does not.

    The fewest faults of several times: something small that stays may land behind the first piece, so that the second
    finds it too short and takes another, which the third has again.
    """

    def faults(memory: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, memory], capture_output=True, text=True, check=True)
        return int(done.stdout)

    huge_pages = (1 << 26) // (1 << 21)
    assert faults("kept") < huge_pages / 4
    assert faults("fresh") >= huge_pages  # a system that gives huge pages unasked has one fault for each


def test_old_garbage_is_kept_until_new_garbage_was_collected() -> None:
    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()  # no collection by chance
    old = weakref.ref(Cycle())
    with only_new_objects_collected():
        new = weakref.ref(Cycle())
        gc.collect()
        assert (old() is None, new() is None) == (False, True)
    gc.collect()
    gc.enable()
    assert old() is None


def test_nothing_is_frozen_if_torch_is_imported_already() -> None:
    before = gc.get_freeze_count()
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
