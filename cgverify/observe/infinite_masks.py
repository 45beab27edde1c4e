"""What TransformerLens's compatibility mode makes of a mask, on Hugging Face's side and in the oracle.

A model gives its attention a mask that hides keys with the lowest finite value. In compatibility mode a bridge makes
hidden scores −∞, and gives a query that sees no key the pattern 0 (`_normalize_compatibility_mask_sentinel` and
`_masked_softmax` in TransformerLens's `attention.py`). Both sides are given the model's mask. Hugging Face's module is
made to hide with −∞ as well, and the stages expect it: whether the bridge does so is then checked, not assumed.
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgverify.observe.inputs import CaseInputs
from cgverify.observe.stages import Stage, TapFunction, TensorsByName
from cgverify.oracle.arithmetic import HALVES, Expected
from cgverify.oracle.parameters import Parameters

MASK = "given.attention_mask"


def hide_with_infinity(attention: nn.Module) -> None:
    """Let a `CodeGenAttention` hide keys with −∞, and give a query that sees no key the pattern 0."""
    attention.__class__ = _AttentionWithInfiniteMask


class _AttentionWithInfiniteMask(CodeGenAttention):  # type: ignore[misc]
    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        mask = None if attention_mask is None else _infinite(attention_mask)
        with _BlindRowsZeroed():  # type: ignore[no-untyped-call]
            return super().forward(*args, attention_mask=mask, **kwargs)


class _BlindRowsZeroed(TorchDispatchMode):
    """Let the softmax of a row without any finite score be 0, where torch computes NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.masked_fill(_blind(args[0]), 0) if func is torch.ops.aten._softmax.default else result


def compatible_inputs(inputs: CaseInputs, dtype: torch.dtype) -> CaseInputs:
    """Return the forwards of a case that have a counterpart in compatibility mode, in a dtype.

    Steps under a flag have none. NaN and infinity become 0, since a bridge makes a pattern that is NaN 0 there. Inputs
    in 16 bits are contiguous: q, k and v have biases there, see `cgverify.observe.cases.data.BIASED`.
    """
    steps = [step for step in inputs.steps if not step.conditions.flags]
    changed = [{name: _compatible(value, dtype) for name, value in step.inputs.items()} for step in steps]
    return CaseInputs(tuple(replace(step, inputs=given) for step, given in zip(steps, changed, strict=True)))


def _compatible(value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point():
        return value
    finite = value.where(value.isfinite(), 0)
    return finite.contiguous() if dtype in HALVES else finite


def with_infinite_masks(stage: Stage) -> Stage:
    """Return a stage of attention as compatibility mode computes it; any other stage unchanged."""
    oracle = stage.oracle
    if not isinstance(oracle, TapFunction):
        return stage

    def masked(side: TensorsByName, parameters: Parameters) -> Expected:
        return oracle.compute(ChainMap({MASK: _infinite(side[MASK])}, side), parameters)  # type: ignore[arg-type]

    def patterned(side: TensorsByName, parameters: Parameters) -> Expected:
        expected = oracle.compute(side, parameters)
        blind = _blind(side[stage.tap.replace("hook_pattern", "hook_attn_scores")])
        value, bound = (part.masked_fill(blind, 0) for part in (expected.value, expected.bound))
        return Expected(value, bound, expected.dtype)

    changed = {"scores": masked, "softmax": patterned, "attn_dropout": patterned}.get(stage.name)
    return stage if changed is None else replace(stage, oracle=TapFunction(changed))


def _infinite(mask: Tensor) -> Tensor:
    return mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)


def _blind(scores: Tensor) -> Tensor:
    return scores.isneginf().all(-1, keepdim=True)
