"""Candidates that do not get far."""

from __future__ import annotations

from typing import Any, NoReturn

from cgverify.bridge import CodeGenAttentionBridge


class Raising(CodeGenAttentionBridge):
    """Boots, and raises in its forward."""

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("not\ntoday")


def unbootable(_: Any) -> NoReturn:
    raise OSError("no boot")
