"""Hunt for a counterexample: sequences of calls on one instance of a bridge, drawn and shrunk."""

from cgverify.verification.fuzz.calls import Call
from cgverify.verification.fuzz.subject import replay

__all__ = ["Call", "replay"]
