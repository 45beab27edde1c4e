"""What comes from elsewhere can be printed and stored."""

from __future__ import annotations

import pytest
from raising import OwnError

from cgverify.common.printable import described, printable, said


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert printable("\x1b[31mred\x07\x9b1m\u202e\ud800") == r"\x1b[31mred\x07\x9b1m\u202e\ud800"
    assert printable("größer\tals\r\n∞ 🙂") == "größer\tals\r\n∞ 🙂"
    printable("".join(map(chr, range(0x11000)))).encode()


def test_an_exception_is_told_by_its_type_where_it_says_nothing() -> None:
    assert described(OwnError()) == "OwnError"
    assert described(ValueError("\n not\ntoday")) == "ValueError: not"
    assert described(ValueError("\ud800")) == r"ValueError: \ud800"
    assert said(OwnError()) == ""


def test_an_interruption_is_one_also_while_an_exception_speaks() -> None:
    class HaltingError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        said(HaltingError())
