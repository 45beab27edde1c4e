"""The hidden faults that no case sees, with the reason, and with the dtypes if it is not all of them.

The self-test runs them too. It fails if a case finds one in a dtype in which it is marked here.
"""

from cgverify.selftest.candidates import Unseen

_MASK = Unseen("Hugging Face's attention has no such mask.")

UNSEEN = {
    "BooleanMaskInverted": _MASK,
    "PaddingMaskIgnored": _MASK,
    "LengthOfFirstLayer": Unseen("No case calls attention for several tokens without a mask."),
    "TinyValuesFlushed": Unseen("float16 has no values below 1e-20 but 0.", ("float16",)),
    "block_clamped_to_float16": Unseen("Nothing but an infinity could show it.", ("float16",)),
}
