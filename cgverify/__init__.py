"""cgverify: does a TransformerLens bridge of CodeGen compute what Hugging Face computes?"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgverify.api import Result, compare_runs, load_bench, load_run, sweep, verify
    from cgverify.bridge import CodeGenAttentionBridge
    from cgverify.common.errors import CgverifyError, PairError, UsageError

# The threads of torch spin while they wait. If another process is busy, they wait for a processor, and a run took 12
# times as long. torch reads this when it is imported, and every command and worker imports this package before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = [
    "CgverifyError",
    "CodeGenAttentionBridge",
    "PairError",
    "Result",
    "UsageError",
    "__version__",
    "compare_runs",
    "load_bench",
    "load_run",
    "sweep",
    "verify",
]

_MODULES = {
    "CgverifyError": "cgverify.common.errors",
    "CodeGenAttentionBridge": "cgverify.bridge",
    "PairError": "cgverify.common.errors",
    "Result": "cgverify.api",
    "UsageError": "cgverify.common.errors",
    "compare_runs": "cgverify.api",
    "load_bench": "cgverify.api",
    "load_run": "cgverify.api",
    "sweep": "cgverify.api",
    "verify": "cgverify.api",
}
"""The module of each exported name. It is imported at the first use of the name, so that `import cgverify` is quick."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
