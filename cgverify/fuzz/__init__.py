"""Hunt for a counterexample: sequences of calls on one instance of a bridge, drawn and shrunk by Hypothesis."""

from cgverify.fuzz.calls import Call
from cgverify.fuzz.hunt import replay

__all__ = ["Call", "replay"]
