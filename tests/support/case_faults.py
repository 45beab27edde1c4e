"""Seeded faults that one case alone can show, each with that case and the stages to blame there."""

from __future__ import annotations

from cgverify.observe.cases.patched import patched_taps
from cgverify.observe.components import COMPONENTS
from cgverify.plan.cases import CASE_KINDS
from cgverify.selftest.seeded.patches import PROJECTIONS
from cgverify.selftest.seeded.seeding import deaf

DEAF = {
    kind: {tap: f"DEAF_{kind}_{tap.replace('.', '_')}" for tap in patched_taps(COMPONENTS[kind])}
    for kind in CASE_KINDS["patched"]
}
"""By kind of component and tap: the name of a candidate in this module that ignores what the hook there returns."""

for kind, names in DEAF.items():
    component = COMPONENTS[kind]
    for tap, name in names.items():
        globals()[name] = deaf(f"{component.bridge_path}.{component.hook_path(tap)}")


def _in_both(case: str, *stages: str) -> dict[tuple[str, str], set[str]]:
    return {(case, kind): set(stages) for kind in ("attn", "block")}


FAULTS = {
    "TokensSeeThemselves": _in_both("masked_row", "scores"),
    "TableOfItsOwn": _in_both("cast_table", "rope"),
    "ResultsInReverse": _in_both("gated", "result") | _in_both("train", "result") | _in_both("patched", "result"),
    "ResultsIgnored": _in_both("gated", "result") | _in_both("train", "result") | _in_both("patched", "patched"),
    "CopiesAfterNorm": {
        ("gated", "block"): {"fork"},
        ("train", "block"): {"fork"},
        ("patched", "block"): {"fork", *PROJECTIONS},
    },
    "NormalizedTwice": {(case, "block"): set(PROJECTIONS) for case in ("gated", "train", "patched")},
    "HeadsProjectTheirNeighbours": _in_both("patched", *PROJECTIONS),
    "OneHeadKeepsItsPattern": {("patched", "attn"): {"mix"}} | _in_both("backward", "gradient"),
    "ReturnsThePatternFromBefore": {("patched", "attn"): {"returned"}, ("backward", "attn"): {"gradient"}},
    "ResidualDropoutMissing": _in_both("train", "resid_dropout"),
    "DropoutScaleMissing": _in_both("train", "attn_dropout"),
    "ScaledByOneAndP": _in_both("train", "attn_dropout") | _in_both("patched", "softmax"),
    "DrawsOnceMore": _in_both("train", "attn_dropout", "resid_dropout"),
    "DropsFromValuesToo": _in_both("train", "mix", "resid_dropout") | _in_both("patched", "mix"),
}
"""By case and kind of component: the stages that must be blamed there. No other stage may fail, in any case."""
