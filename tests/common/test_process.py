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


FREED = """
import sys
from cgverify.common.process import keep_memory
if sys.argv[1] == "kept": keep_memory()
import psutil, torch
before = psutil.Process().memory_info().rss
torch.ones(1 << 24)
print((psutil.Process().memory_info().rss - before) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_stays_resident_if_kept() -> None:
    """Write to each page of 64 MiB and free it. A page that stays in the process has no second page fault."""

    def resident_mib(memory: str) -> int:
        done = subprocess.run([sys.executable, "-c", FREED, memory], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert resident_mib("kept") > 48
    assert resident_mib("fresh") < 16


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
