"""Text from elsewhere, such as what a candidate's exception says, made fit to be printed and stored."""

from __future__ import annotations

import re

_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tabs and line ends, what turns the direction of text, and surrogates, which no UTF-8 has."""


def printable(text: str) -> str:
    r"""The same text with `\x1b` written out where it had an escape: no terminal obeys it, and any encoding has it."""
    return _UNFIT.sub(lambda found: ascii(found[0])[1:-1], text)


def said(error: BaseException) -> str:
    """What an exception says; nothing where it cannot even say that: it may be of a candidate's own class."""
    try:
        return printable(str(error)).strip()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""


def described(error: BaseException) -> str:
    """An exception as one line."""
    lines = said(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
