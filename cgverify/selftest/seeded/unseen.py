"""The hidden faults that no case sees, with the reason. A fault that a case begins to see leaves this table."""

_GRADIENT = "Gradients are taken of an output alone, once, and of a block's parts alone."
_MODEL = "The whole model is not called so, or not asked for that name."

UNSEEN = {
    "GradientsLeftOff": "No case gives hidden states of another width.",
    "mlp_result_of_same_tensor": "No case edits an input in place between two calls.",
    "BooleanMaskInverted": "Hugging Face adds a boolean mask, so only the case `caches` shows it, in float32.",
    "PaddingMaskIgnored": "Hugging Face's attention takes no such mask, so only `caches` shows it, in float32.",
    "block_clamped_to_float16": "In float16, nothing but an infinity could show it.",
    "SameDtypeAssumed": "No hook returns a tensor of another dtype.",
    "backward_hook_unheard": "No case attaches a hook to a gradient.",
    "returned_pattern_cut_off": _GRADIENT,
    "gradient_around_the_hook": _GRADIENT,
    "FirstDerivativeOnly": _GRADIENT,
    "MaskDetached": _GRADIENT,
    "ReturnedPatternDetached": _GRADIENT,
    "no_forward_derivative": _GRADIENT,
    "no_gradient_for_token_0": _GRADIENT,
    "unembedding_bias_frozen": _GRADIENT,
    "final_gain_frozen": _GRADIENT,
    "branch_flag_ignored_in_training": "`use_hook_mlp_in` is verified in eval mode only.",
    "stops_a_layer_late": _MODEL,
    "generation_ignores_padding": _MODEL,
    "generation_samples": _MODEL,
    "rotated_names_exchanged": _MODEL,
    "outputs_exchanged_in_cache": _MODEL,
    "mlp_weight_is_a_copy": "Weights are compared by name, and not edited through it.",
}
