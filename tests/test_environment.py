"""What a process sets up before it works."""

from __future__ import annotations

import gc
import subprocess
import sys

from cgverify.environment import uncollected

SCRIPT = """
import gc
from cgverify.environment import uncollected
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


def test_imports_are_not_collected_and_are_left_out_of_later_passes() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True", "True", "True"]


def test_where_torch_is_imported_already_nothing_is_frozen() -> None:
    before = gc.get_freeze_count()
    with uncollected():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
