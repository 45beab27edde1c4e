"""Whose fault an exception is that was raised while a side ran.

A side's forward passes through functions of this package: those that call it, and the hooks that it calls. What a side
raises is raised below the function that calls it. What such a hook raises is ours, and so is a lack of memory or of an
operation on the device, in any code.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

from cgverify.checkpoint.out_of_view import SENTENCE
from cgverify.common.errors import CgverifyError
from cgverify.common.memory import is_shortage
from cgverify.common.printable import described, message_of

F = TypeVar("F", bound=Callable[..., Any])

_OURS = ("cgverify.observe.", "cgverify.oracle.", "cgverify.verification.")

_LACKS: dict[type[Exception], re.Pattern[str]] = {
    NotImplementedError: re.compile(r"aten::"),
    RuntimeError: re.compile(r"not implemented for '\w+'"),
    TypeError: re.compile(r"(doesn't support|has no) float64"),
}
"""By class: what torch says of an operation that a device does not have, or not for a dtype."""

_ABSENT = re.compile(r"\bmeta\b", re.IGNORECASE)
"""What torch says of a tensor on the meta device, where the weights are that are not in view."""

_calls_a_side: set[CodeType] = set()


def calls_a_side(function: F) -> F:
    """Mark a function of this package that calls code of a side: what it raises itself is the side's."""
    _calls_a_side.add(function.__code__)
    return function


def lacks_operation(error: BaseException) -> bool:
    """Whether an exception says that a device lacks an operation."""
    return any(isinstance(error, kind) and said.search(message_of(error)) for kind, said in _LACKS.items())


def computes_out_of_view(error: BaseException) -> bool:
    """Whether an exception says that a tensor without memory was computed with."""
    kinds = RuntimeError, NotImplementedError, TypeError
    return isinstance(error, kinds) and _ABSENT.search(message_of(error)) is not None


def is_ours(error: BaseException) -> bool:
    """Whether an exception that came out of a side's forward is not the side's."""
    if isinstance(error, CgverifyError) or is_shortage(error) or lacks_operation(error) or computes_out_of_view(error):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, RecursionError):  # it is raised wherever the stack is full, which may be in a hook
        return not any(frame.f_code in _calls_a_side for frame in frames)
    ours = [frame.f_code for frame in frames if frame.f_globals.get("__name__", "").startswith(_OURS)]
    return bool(ours) and ours[-1] not in _calls_a_side


def reason(error: BaseException) -> str:
    """Return why something could not be verified, if the fault is not a side's."""
    if isinstance(error, CgverifyError):
        return str(error)
    if is_shortage(error):
        return f"memory is short: {described(error)}"
    if computes_out_of_view(error):
        return f"{SENTENCE} ({described(error)})"
    if lacks_operation(error):
        return f"this device lacks an operation: {described(error)}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "cgverify" in frame.filename]
    where = f" (in {frames[-1].name}, line {frames[-1].lineno} of {_file(frames[-1].filename)})" if frames else ""
    return f"cgverify failed, which is a fault of its own: {described(error)}{where}"


def _file(path: str) -> str:
    return path[path.rindex("cgverify") :]
