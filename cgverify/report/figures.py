"""Figures as tables write them."""

from __future__ import annotations

import math

import pandas as pd


def figure(value: object) -> str:
    """Three digits, or a dash where there is nothing."""
    return "–" if absent(value) else f"{value:.3g}"


def bits(value: object) -> str:
    """`21.3`; `exact` where there was no error at all."""
    if absent(value):
        return "–"
    return "exact" if math.isinf(float(str(value))) else f"{value:.1f}"


def absent(value: object) -> bool:
    return value is None or bool(pd.isna(value))  # type: ignore[call-overload]
