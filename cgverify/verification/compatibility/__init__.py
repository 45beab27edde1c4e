"""How a bridge in TransformerLens's compatibility mode is verified.

That mode processes the weights (layer norms are folded into them, means subtracted) and changes the masks, so such a
bridge cannot be compared with Hugging Face's tensors. Two questions are asked instead. Do the processed weights do what
the reference's do, weight by weight (`processed_weights`)? And does the bridge, stage by stage, compute with its
weights what Hugging Face's own modules compute with the same weights (`processed_reference`)? Its masks hide with −∞
instead of the lowest finite value, so both sides are given masks of −∞.
"""
