"""Candidates that raise, in their boot, their inputs or their forward."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, NoReturn

from cgverify.bridge import CodeGenAttentionBridge


class Raising(CodeGenAttentionBridge):
    """Boots, and raises in its forward."""

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("not\ntoday")


class RaisesOnce(CodeGenAttentionBridge):
    """Raises in one forward of all processes that have the same file in `RAISED`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raised = Path(os.environ["RAISED"])
        if not raised.exists():
            raised.touch()
            raise RuntimeError("only once")
        return super().forward(*args, **kwargs)


class RaisingLater(CodeGenAttentionBridge):
    """Raises from the fifth forward on."""

    runs = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        type(self).runs += 1
        if self.runs > 4:
            raise RuntimeError("enough")
        return super().forward(*args, **kwargs)


def unbootable(_: Any) -> NoReturn:
    raise OSError("no boot")


class OwnError(BaseException):
    """An error that is not an `Exception` and whose `str` raises."""

    def __str__(self) -> str:
        raise RuntimeError("str fails")


class SaysSurrogates(CodeGenAttentionBridge):
    """Raises a message that cannot be printed or stored as it is."""

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError("\x1b[31mred \ud800")


class RaisesItsOwn(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise OwnError


class LeavesAsGenerator(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise GeneratorExit("gone")


class HasNoInputs(CodeGenAttentionBridge):
    def get_random_inputs(self, *_: Any, **__: Any) -> NoReturn:
        raise OwnError


def boots_with_its_own(_: Any) -> NoReturn:
    raise OwnError


class Writes(CodeGenAttentionBridge):
    """Writes to stdout as a C library may: directly and through C's own buffer."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        os.write(1, b"past Python\n")
        ctypes.CDLL(None).puts(b"through C's buffer")
        return super().forward(*args, **kwargs)
