"""Seeded faults, by what is wrong. `seeding` has the functions that they are made with."""

from dataclasses import replace

from cgverify.selftest.seeded import (
    autocast,
    block,
    cache,
    caches,
    conduct,
    coverage,
    data,
    dropout_flags,
    ends,
    feed_forward,
    gradients,
    hooks,
    interventions,
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
    sizes,
    state,
    training,
    whole_model,
)
from cgverify.selftest.seeded.unseen import UNSEEN

_SUBJECTS = (
    *(layout, rotation, scores, mixing, cache, hooks, patches, listening, conduct, precision, training, settings),
    *(autocast, layer_norm, feed_forward, block, ends),
)

HIDDEN = tuple(
    replace(fault, unseen=UNSEEN.get(fault.name))
    for subject in (sizes, state, data, coverage, interventions, gradients, dropout_flags, caches, whole_model)
    for fault in subject.FAULTS
)
"""The faults that mild inputs in one forward do not show, by what shows them."""

FAULTS = tuple(fault for subject in _SUBJECTS for fault in subject.FAULTS)
REFERENCES = (*references.FAULTS, *references.VARIANTS)
