"""Candidates that kill the process that they run in."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from cgverify.bridge import CodeGenAttentionBridge


class Deadly(CodeGenAttentionBridge):
    """Whoever runs its attention dies."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyOnce(CodeGenAttentionBridge):
    """The first to run its attention dies; a file tells the next."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        try:
            Path(os.environ["DEADLY_ONCE"]).open("x").close()
        except FileExistsError:
            return super().forward(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
