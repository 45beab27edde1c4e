"""The templates of this package. Whatever is put into them is escaped; findings may hold any text."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cgverify.records import Verdict

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
    Verdict.BITWISE: "every bit equal to Hugging Face's",
    Verdict.ULP: "within the bound, and at most 4 units in the last place away",
    Verdict.BOUNDED: "within the bound",
    Verdict.UNSUPPORTED: "Hugging Face refuses this setting",
    Verdict.ERROR: "could not be run",
    Verdict.MISSING: "a hook that must fire never did",
    Verdict.DIVERGED: "not within the bound, or of another form",
}


def render_template(name: str, **values: Any) -> Markup:
    """A template, filled in."""
    return Markup(_environment().get_template(name).render(**values))  # noqa: S704  escaped by the template


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
    environment.globals["symbols"] = SYMBOLS
    environment.globals["source"] = _source
    return environment


def figure(number: float | None) -> str:
    """Three digits, a dash for what is not there."""
    if number is None:
        return "–"
    return f"{number:.3g}".replace("inf", "∞")


def script_hash() -> str:
    """What the page's policy allows to run: our script, and nothing that a finding might bring along."""
    digest = hashlib.sha256(_source("report.js").encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _source(name: str) -> Markup:
    """A style sheet or script of ours, as it is: it is not to be escaped and holds no value of a run."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])  # noqa: S704
