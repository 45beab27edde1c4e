"""The templates of this package. Whatever is put into them is escaped; findings may hold any text."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cgverify.common.records import Verdict

SYMBOLS = {
    Verdict.BITWISE: "=",
    Verdict.ULP: "≈",
    Verdict.BOUNDED: "≤",
    Verdict.UNSUPPORTED: "–",
    Verdict.ERROR: "!",
    Verdict.MISSING: "∅",
    Verdict.DIVERGED: "×",
}
"""What stands for a verdict beside its colour: equal, nearly equal, below the bound, and so on."""

MEANINGS = {
    Verdict.BITWISE: "equal in every bit",
    Verdict.ULP: "at most 4 ULP away",
    Verdict.BOUNDED: "within the bound",
    Verdict.UNSUPPORTED: "refused by Hugging Face",
    Verdict.ERROR: "could not be run",
    Verdict.MISSING: "a hook never fired",
    Verdict.DIVERGED: "not within the bound",
}


def render_template(name: str, **values: Any) -> Markup:
    """A template, filled in."""
    return Markup(_environment().get_template(name).render(**values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("cgverify.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.globals["counted"] = counted
    environment.globals["symbols"] = SYMBOLS
    environment.globals["source"] = _source
    return environment


def figure(number: float | None) -> str:
    """Three digits, or whole numbers with their thousands; a dash for what is not there."""
    if number is None:
        return "–"
    if 1000 <= number < 1e6:
        return f"{number:,.0f}"
    return f"{number:.3g}".replace("inf", "∞")


def counted(number: int, noun: str) -> str:
    """`1 fault`, `1,200 faults`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def script_hash() -> str:
    """What the page's policy allows to run: our script, and nothing that a finding might bring along."""
    digest = hashlib.sha256(_source("report.js").encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _source(name: str) -> Markup:
    """A style sheet or script of ours, as it is: it is not to be escaped and holds no value of a run."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])
