"""The whole table of the exam."""

from __future__ import annotations

from cgverify.selftest.entry import Fault, Variant
from cgverify.selftest.seeded import (
    autocast,
    block,
    cache,
    conduct,
    ends,
    feed_forward,
    hooks,
    layer_norm,
    layout,
    listening,
    mixing,
    patches,
    precision,
    rotation,
    scores,
    settings,
    training,
)
from cgverify.selftest.variants import VARIANTS as _VARIANTS

FAULTS: tuple[Fault, ...] = tuple(
    fault
    for subject in (
        *(layout, rotation, scores, mixing, cache, hooks, patches, listening, conduct, precision, training, settings),
        *(autocast, layer_norm, feed_forward, block, ends),
    )
    for fault in subject.FAULTS
)

VARIANTS: tuple[Variant, ...] = _VARIANTS
