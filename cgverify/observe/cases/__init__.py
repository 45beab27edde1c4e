"""The cases: recipes for probes, each with what it alone can see. One small file a case, and this table of all.

Their names and the kinds of component that they are for are in `cgverify/plan/cases.py`, which needs no torch.
"""

from cgverify.observe.cases import (
    autocast,
    backward,
    caches,
    cast_table,
    data,
    decode,
    default,
    gated,
    masked_row,
    model,
    patched,
    shapes,
    state,
    stress,
    text,
    train,
    weights,
)
from cgverify.observe.cases.case import Case

CASES: dict[str, Case] = {
    "default": default.CASE,
    "stress": stress.CASE,
    "decode": decode.CASE,
    "masked_row": masked_row.CASE,
    "train": train.CASE,
    "cast_table": cast_table.CASE,
    "gated": gated.CASE,
    "patched": patched.CASE,
    "caches": caches.CASE,
    "autocast": autocast.CASE,
    "backward": backward.CASE,
    "text": text.CASE,
    "model": model.CASE,
    "shapes": shapes.CASE,
    "state": state.CASE,
    "data": data.CASE,
    "weights": weights.CASE,
}
