"""Side effects: a candidate that raises, exits, or changes what it must not change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cgverify.selftest.candidates import Rows, by_name, named_faults
from cgverify.selftest.seeded.seeding import attention


def _change_input(_: Any, forward: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    returned = forward(hidden_states, *args, **kwargs)
    hidden_states += 1
    return returned


def _change_mask(_: Any, scores: Any, query: Tensor, key: Tensor, mask: Tensor) -> Any:
    result = scores(query, key, mask)
    mask.div_(2)
    return result


def _change_settings(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    torch.set_float32_matmul_precision("medium")
    return mix(pattern, value)


def _raise(kind: type[BaseException], *arguments: object) -> Any:
    """Return a replacement that raises an error."""

    def replacement(*_: Any, **__: Any) -> Any:
        raise kind(*arguments)

    return replacement


def _raise_for_one_token(_: Any, mix: Any, pattern: Tensor, value: Tensor) -> Any:
    if pattern.shape[2] == 1:
        raise IndexError("one token is not a sequence")
    return mix(pattern, value)


def _one_token(_: Any, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    given = inputs(*args, **kwargs)
    return {name: tensor[:1, :1] for name, tensor in given.items() if name != "position_embeddings"}


_INPUT: Rows = {"ChangesItsInput": ("Changes the hidden states in place after use.", attention(forward=_change_input))}
_CONDUCT: Rows = {
    "ChangesTheMask": ("Scales the mask in place.", attention(_scores=_change_mask)),
    "ChangesSettings": ("Lowers torch's matmul precision for the whole process.", attention(_mix=_change_settings)),
}
_FORWARD: Rows = {
    "Raises": ("The forward raises.", attention(_mix=_raise(RuntimeError, "this forward always raises"))),
    "Exits": ("The forward ends the process.", attention(forward=_raise(SystemExit, 0))),
}
_ONE_TOKEN: Rows = {
    "RaisesOnSingleTokens": ("The forward raises for a single query.", attention(_mix=_raise_for_one_token)),
}
_BOOT: Rows = {
    "CannotBoot": (
        "The module cannot be wrapped.",
        attention(set_original_component=_raise(RuntimeError, "this module cannot be wrapped")),
    ),
}
_INPUTS: Rows = {
    "NoInputs": (
        "`get_random_inputs` raises.",
        attention(get_random_inputs=_raise(RuntimeError, "there are no inputs")),
    ),
    "OwnExam": ("`get_random_inputs` returns one row with one token.", attention(get_random_inputs=_one_token)),
}

FAULTS = (
    *named_faults(__name__, _INPUT, "conduct", "input"),
    *named_faults(__name__, _CONDUCT, "conduct"),
    *named_faults(__name__, _FORWARD, "forward"),
    *named_faults(__name__, _ONE_TOKEN, "forward", case="decode"),
    *named_faults(__name__, _BOOT, "boot"),
    *named_faults(__name__, _INPUTS, "get_random_inputs", kinds=("attn",)),
)
__getattr__ = by_name(FAULTS)
