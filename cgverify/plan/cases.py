"""The components and the cases: their names, which case is for which component, and what a case needs.

Importing this needs no torch. What a case does is in `cgverify/observe/cases/`.
"""

BEFORE = ("embed",)
PER_LAYER = ("ln1", "attn", "attn.q", "attn.k", "attn.v", "attn.o", "mlp", "mlp.in", "mlp.out", "block")
AFTER = ("ln_final", "unembed")
WHOLE = ("model",)
"""The whole bridge, booted at once."""

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
    "backward": ("ln1", "attn", "attn.o", "mlp", "mlp.in", "mlp.out", "block"),
    "text": (*BEFORE, *PER_LAYER, *AFTER),
    "model": (*BEFORE, "block", *AFTER, *WHOLE),
}
"""Each case, with the kinds of component that it is for."""

DEFAULT_CASES = ("default", "stress", "decode")
"""The cases of a plain run. The others are verified if they are named, or with `all`."""

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
