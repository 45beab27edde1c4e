"""Make text from other code, such as the message of a candidate's exception, safe to print and store."""

from __future__ import annotations

import re

_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tabs and line ends, characters that change the direction of text, and surrogates, which
UTF-8 cannot encode."""


def printable(text: str) -> str:
    r"""Return text with unsafe characters written out, such as `\x1b` for an escape, which no terminal obeys."""
    return _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)


def message_of(error: BaseException) -> str:
    """Return the message of an exception, or nothing if its class, which may be a candidate's, raises instead."""
    try:
        return printable(str(error)).strip()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def described(error: BaseException) -> str:
    """Return an exception as one line."""
    lines = message_of(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
