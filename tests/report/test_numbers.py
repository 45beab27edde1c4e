"""Numbers as text."""

from __future__ import annotations

import pytest

from cgverify.report.numbers import duration


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (95, "95 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration_has_a_unit_of_its_size(seconds: float, text: str) -> None:
    assert duration(seconds) == text
