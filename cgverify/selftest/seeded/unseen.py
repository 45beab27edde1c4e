"""The hidden faults that no case sees, with the reason, and with the dtypes if it is not all of them.

The self-test runs them too. It fails if a case finds one in a dtype in which it is marked here.
"""

from cgverify.selftest.candidates import Unseen

_GRADIENT = Unseen("Gradients are taken of an output alone, once, and of a block's parts alone.")
_MODEL = Unseen("The whole model is not called so, or not asked for that name.")
_MASK = Unseen("Hugging Face's attention has no such mask.")

UNSEEN = {
    "BooleanMaskInverted": _MASK,
    "PaddingMaskIgnored": _MASK,
    "LengthOfFirstLayer": Unseen("No case calls attention for several tokens without a mask."),
    "TinyValuesFlushed": Unseen("float16 has no values below 1e-20 but 0.", ("float16",)),
    "block_clamped_to_float16": Unseen("Nothing but an infinity could show it.", ("float16",)),
    "backward_hook_unheard": Unseen("No case attaches a hook to a gradient."),
    "returned_pattern_cut_off": _GRADIENT,
    "gradient_around_the_hook": _GRADIENT,
    "FirstDerivativeOnly": _GRADIENT,
    "MaskDetached": _GRADIENT,
    "ReturnedPatternDetached": _GRADIENT,
    "CachedKeysDetached": Unseen("No case takes a gradient in a prefix through a cache."),
    "no_forward_derivative": _GRADIENT,
    "no_gradient_for_token_0": _GRADIENT,
    "unembedding_bias_frozen": _GRADIENT,
    "final_gain_frozen": _GRADIENT,
    "stops_a_layer_late": _MODEL,
    "generation_ignores_padding": _MODEL,
    "rotated_names_exchanged": _MODEL,
    "outputs_exchanged_in_cache": _MODEL,
}
