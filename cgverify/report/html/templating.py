"""The templates of this package. Values are escaped when they are filled in, since findings may contain any text."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cgverify.common.records import Verdict
from cgverify.report.numbers import counted, grouped_figure

SYMBOLS = {
    Verdict.BITWISE: "=",
    Verdict.ULP: "≈",
    Verdict.BOUNDED: "≤",
    Verdict.UNSUPPORTED: "–",
    Verdict.ERROR: "!",
    Verdict.MISSING: "∅",
    Verdict.SUSPECT: "?",
    Verdict.DIVERGED: "×",
}
"""The symbol of each verdict, which is shown with its colour: equal, nearly equal, below the bound, and so on."""

MEANINGS = {
    Verdict.BITWISE: "equal in every bit",
    Verdict.ULP: "at most 4 ULP away",
    Verdict.BOUNDED: "within the bound",
    Verdict.UNSUPPORTED: "unsupported, so not compared",
    Verdict.ERROR: "could not be run",
    Verdict.MISSING: "a hook never fired",
    Verdict.SUSPECT: "Hugging Face's side is not within the bound",
    Verdict.DIVERGED: "not within the bound",
}


def render_template(name: str, **values: Any) -> Markup:
    """Fill in a template."""
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
    environment.filters["figure"] = grouped_figure
    environment.globals["counted"] = counted
    environment.globals["symbols"] = SYMBOLS
    environment.globals["source"] = _source
    return environment


def script_hash() -> str:
    """Return the hash of the only script that the page's policy allows, so that no text of a finding can run."""
    digest = hashlib.sha256(_source("report.js").encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _source(name: str) -> Markup:
    """Return a style sheet or script of this package without escaping, since it contains no value of a run."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])
