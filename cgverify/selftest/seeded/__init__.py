"""Seeded faults, by what is wrong. `seeding` has the functions that they are made with."""

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
    references,
    rotation,
    scores,
    settings,
    training,
)

_SUBJECTS = (
    *(layout, rotation, scores, mixing, cache, hooks, patches, listening, conduct, precision, training, settings),
    *(autocast, layer_norm, feed_forward, block, ends),
)

FAULTS = tuple(fault for subject in _SUBJECTS for fault in subject.FAULTS)
REFERENCES = (*references.FAULTS, *references.VARIANTS)
