"""Candidates that kill the process that runs them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from cgverify.bridge import CodeGenAttentionBridge


class Deadly(CodeGenAttentionBridge):
    """Kills every process that runs its attention."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyOnce(CodeGenAttentionBridge):
    """Kills the first process that runs its attention, and leaves a file so that the next one survives."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            Path(os.environ["DEADLY_ONCE"]).open("x").close()
        except FileExistsError:
            return super().forward(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
