"""cgverify: does a TransformerLens bridge of CodeGen compute what Hugging Face computes?"""

__version__ = "0.1.0"
