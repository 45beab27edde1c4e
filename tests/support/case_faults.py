"""Seeded faults that one case alone can see, each with that case and the stages to blame there."""

from __future__ import annotations

from typing import Any

from cgverify.observe.cases.patched import patched_taps
from cgverify.observe.components import COMPONENTS
from cgverify.plan import cells as plan
from cgverify.selftest.seeded.patches import (
    DeafHookPoint,
    HeadsProjectTheirNeighbours,
    OneHeadKeepsItsPattern,
    ReturnsThePatternFromBefore,
)
from cgverify.selftest.seeded.settings import (
    CopiesAfterNorm,
    NormalizedTwice,
    ResultsIgnored,
    ResultsInReverse,
    TableOfItsOwn,
    TokensSeeThemselves,
)
from cgverify.selftest.seeded.training import (
    DrawsOnceMore,
    DropoutScaleMissing,
    DropsFromValuesToo,
    ResidualDropoutMissing,
    ScaledByOneAndP,
)


def deaf(path: str) -> Any:
    """A function that makes one hook of a booted bridge only show."""

    def change(bridge: Any) -> Any:
        bridge.get_submodule(path).__class__ = DeafHookPoint
        return bridge

    return change


# A candidate is named by where it can be imported from: `case_faults:DEAF_hook_q` and so on.
DEAF = {
    kind: {tap: f"DEAF_{kind}_{tap.replace('.', '_')}" for tap in patched_taps(COMPONENTS[kind])}
    for kind in plan.CASE_KINDS["patched"]
}
"""By kind of component and tap: the name of the candidate whose hook there only shows."""

for kind, names in DEAF.items():
    for tap, name in names.items():
        component = COMPONENTS[kind]
        globals()[name] = deaf(f"{component.bridge_path}.{component.hook_path(tap)}")


_PROJECTIONS = {"project_q", "project_k", "project_v"}

FAULTS: dict[type, dict[tuple[str, str], set[str]]] = {
    TokensSeeThemselves: {("masked_row", "attn"): {"scores"}, ("masked_row", "block"): {"scores"}},
    TableOfItsOwn: {("cast_table", "attn"): {"rope"}, ("cast_table", "block"): {"rope"}},
    ResultsInReverse: {("gated", "attn"): {"result"}, ("gated", "block"): {"result"}},
    ResultsIgnored: {
        ("gated", "attn"): {"result"},
        ("gated", "block"): {"result"},
        ("patched", "attn"): {"patched"},
        ("patched", "block"): {"patched"},
    },
    CopiesAfterNorm: {("gated", "block"): {"fork"}, ("patched", "block"): {"fork", *_PROJECTIONS}},
    NormalizedTwice: {("gated", "block"): _PROJECTIONS, ("patched", "block"): _PROJECTIONS},
    HeadsProjectTheirNeighbours: {("patched", "attn"): _PROJECTIONS, ("patched", "block"): _PROJECTIONS},
    OneHeadKeepsItsPattern: {("patched", "attn"): {"mix"}},
    ReturnsThePatternFromBefore: {("patched", "attn"): {"returned"}},
    ResidualDropoutMissing: {("train", "attn"): {"resid_dropout"}, ("train", "block"): {"resid_dropout"}},
    DropoutScaleMissing: {("train", "attn"): {"attn_dropout"}, ("train", "block"): {"attn_dropout"}},
    ScaledByOneAndP: {("train", "attn"): {"attn_dropout"}, ("train", "block"): {"attn_dropout"}},
    DrawsOnceMore: {
        ("train", "attn"): {"attn_dropout", "resid_dropout"},
        ("train", "block"): {"attn_dropout", "resid_dropout"},
    },
    DropsFromValuesToo: {
        ("train", "attn"): {"mix", "resid_dropout"},
        ("train", "block"): {"mix", "resid_dropout"},
    },
}
"""By case and kind of component: the stages that must be blamed there. Nothing else may fail, in any case."""
