"""The components and the cases: their names, which case is for which component, and what a case needs.

Importing this needs no torch. What a case does is in `cgverify/observe/cases/`.
"""

BEFORE = ("embed",)
PER_LAYER = ("ln1", "attn", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out", "block")
AFTER = ("ln_final", "unembed")
WHOLE = ("model",)
"""The whole bridge, booted at once."""

KINDS = (*BEFORE, *PER_LAYER, *AFTER, *WHOLE)
"""Every kind of component, in the order of the computation."""

CASE_KINDS = {
    "default": (*BEFORE, *PER_LAYER, *AFTER),
    "stress": (*BEFORE, *PER_LAYER, *AFTER),
    "decode": ("attn", "block"),
    "masked_row": ("attn", "block"),
    "train": ("attn", "mlp", "block"),
    "cast_table": ("attn", "block"),
    "gated": ("attn", "block"),
    "patched": (*BEFORE, "ln1", "attn", "mlp", "block", *AFTER),
    "caches": ("attn", "block"),
    "autocast": (*PER_LAYER, *AFTER),
    "backward": (*BEFORE, "ln1", "attn", "attn.o", "mlp", "mlp.in", "mlp.out", "block", *AFTER),
    "text": (*BEFORE, *PER_LAYER, *AFTER),
    "model": (*BEFORE, "block", *AFTER, *WHOLE),
    "shapes": (*BEFORE, "ln1", "attn", "mlp", "block", *AFTER),
    "state": (*BEFORE, "ln1", "attn", "mlp", "block", *AFTER),
    "data": (*BEFORE, *PER_LAYER, *AFTER),
    "weights": (*BEFORE, "block", *AFTER),
}
"""Each case, with the kinds of component that it is for."""

SAMPLED = {"caches": ("attn", "block"), "gated": ("attn",), "train": ("attn", "mlp"), "patched": ("attn",)}
"""The cases of which a plain run has only one layer, the middle one, with these kinds of component. What they show is
in the code of attention and MLP, which all layers share. A case that is named is verified in full."""

DEFAULT_CASES = ("default", "stress", "decode", "shapes", "state", "data", "weights", *SAMPLED)
"""The cases of a plain run. The others are verified if they are named, or with `all`."""

FEW_LAYERS = {"shapes": 3, "state": 3, "data": 3}
"""The number of layers that a case is for unless layers are asked for: the first, the middle and the last. What these
cases show is in the code of a component, which all layers share."""

SIZES = {"shapes": (1, 259)}
"""Batch and tokens of the largest forward of a case to which those of random inputs do not apply."""

IN_BLOCK = {"shapes": ("ln1", "mlp"), "state": ("ln1", "attn", "mlp")}
"""By case: the kinds that a block's own cell covers. Their own cells are planned in a layer of which no block is."""

EAGER_ONLY = ("train", "autocast")
"""The cases that are planned for eager attention alone. Other implementations do not show which elements their dropout
kept, and autocast rounds their operands on its own."""

DECODE_STEPS = (("token 1", 1), ("token 2", 1), ("chunk", 3))
"""Names and lengths of the forwards that follow a prefill of `--seq-len` tokens if a sequence is decoded."""

DECODING = ("decode", "caches", "autocast")
"""The cases that decode a sequence."""

DECODED_TOKENS = sum(length for _, length in DECODE_STEPS)

PROMPTED = ("text", "model")
"""The cases whose inputs come from a prompt."""

FORCED_TOKENS = 2
"""The number of a prompt's last tokens that the `model` case takes one by one, with a cache."""

GENERATED_TOKENS = 8
"""The number of tokens that a whole model then generates."""

CARRIED, TOP_1, AS_CARRIED, GENERATION = "carried", "top_1", "as_carried", "generation"
"""Stages of the `model` case that are reported and fail nothing: see `cgverify/verification/drift.py`."""
