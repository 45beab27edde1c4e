"""Candidates that do not get far."""

from __future__ import annotations

from typing import Any, NoReturn

from cgverify.bridge import CodeGenAttentionBridge


class Raising(CodeGenAttentionBridge):
    """Boots, and raises in its forward."""

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("not\ntoday")


class RaisingLater(CodeGenAttentionBridge):
    """Runs four times."""

    runs = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        type(self).runs += 1
        if self.runs > 4:
            raise RuntimeError("enough")
        return super().forward(*args, **kwargs)


def unbootable(_: Any) -> NoReturn:
    raise OSError("no boot")
