"""What a Dask worker of a local cluster does first: Dask preloads this module."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def dask_setup(_: Any) -> None:
    """Leave Ctrl-C, which reaches the whole terminal, to the driver, and its stdout to the report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
