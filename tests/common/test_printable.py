"""Text from other code is made safe to print and store."""

from __future__ import annotations

import pytest
from raising import OwnError

from cgverify.common.printable import described, message_of, printable


def test_control_characters_are_written_out() -> None:
    assert printable("\x1b[31mred\x07\x9b1m\u202e\ud800") == r"\x1b[31mred\x07\x9b1m\u202e\ud800"
    assert printable("größer\tals\r\n∞ 🙂") == "größer\tals\r\n∞ 🙂"
    printable("".join(map(chr, range(0x11000)))).encode()


def test_exception_without_a_message_is_described_by_its_type() -> None:
    assert described(OwnError()) == "OwnError"
    assert described(ValueError("\n not\ntoday")) == "ValueError: not"
    assert described(ValueError("\ud800")) == r"ValueError: \ud800"
    assert message_of(OwnError()) == ""


def test_interruption_while_an_exception_is_described_is_raised() -> None:
    class HaltingError(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        message_of(HaltingError())
