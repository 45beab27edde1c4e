"""The command line of cgverify as a separate process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
Cli = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "cgverify", *arguments]
