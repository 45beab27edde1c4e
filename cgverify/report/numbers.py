"""Numbers as text, the same in every report."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd


def figure(value: Any) -> str:
    """Format a number with three digits; None and NaN as a dash."""
    return "–" if _absent(value) else f"{value:.3g}"


def grouped_figure(value: float | None) -> str:
    """Format a number with three digits, thousands as `1,234` and infinity as `∞`; None as a dash."""
    if value is not None and 1000 <= value < 1e6:
        return f"{value:,.0f}"
    return figure(value).replace("inf", "∞")


def bits(value: Any) -> str:
    """Format trusted bits as `21.3`; infinity, which means no error at all, as `exact`; None and NaN as a dash."""
    if _absent(value):
        return "–"
    return "exact" if math.isinf(value) else f"{value:.1f}"


def counted(number: int, noun: str) -> str:
    """Return `1 cell` or `1,200 cells`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return `90 s`, `12 min` or `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def shortened(text: str, length: int) -> str:
    """Return a text of at most `length` characters, with an ellipsis if something is cut off."""
    return text if len(text) <= length else text[: length - 1] + "…"


def _absent(value: Any) -> bool:
    return value is None or bool(pd.isna(value))
