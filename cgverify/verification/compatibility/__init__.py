"""A bridge in TransformerLens's compatibility mode, whose weights and masks are not Hugging Face's any more."""
