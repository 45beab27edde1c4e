"""What fails for a reason of the machine or of our own, and candidates that do, or whose hooks show misfits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge


def out_of_memory(*_: Any, **__: Any) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def more_than_the_cpu_has(*_: Any, **__: Any) -> Tensor:
    return torch.empty(1 << 50)


def operation_that_the_device_lacks(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("Could not run 'aten::erf' with arguments from the 'XPU' backend.")


def mistyped_shape(*_: Any, **__: Any) -> Tensor:
    return torch.ones(2, 3) @ torch.ones(2, 3)


def mistyped_key(*_: Any, **__: Any) -> NoReturn:
    raise KeyError("hook_qq")


class OutOfMemory(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> Any:
        out_of_memory()


class LacksOperation(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> Any:
        operation_that_the_device_lacks()


class InputsOutOfMemory(CodeGenAttentionBridge):
    def get_random_inputs(self, *_: Any, **__: Any) -> NoReturn:
        out_of_memory()


class Endless(CodeGenAttentionBridge):
    """Calls itself. Whether the stack is full in its own code or in a hook depends on the depth."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.hook_in(torch.zeros(1))
        return self.forward(*args, **kwargs)


class Unfinished(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError("rotation comes later")


class WrongShapes(CodeGenAttentionBridge):
    def forward(self, *_: Any, **__: Any) -> Any:
        return mistyped_shape()


def shown_as(**changes: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    """Return a change of a bridge after which hooks show other tensors than those that are used.

    Args:
        changes: by the hook's path in attention, with `__` for a dot.
    """

    def change_bridge(bridge: Any) -> Any:
        for hook, change in changes.items():

            class ShowsAnother(HookPoint):  # type: ignore[misc]
                change_shown = staticmethod(change)

                def __call__(self, tensor: Tensor) -> Tensor:
                    super().__call__(self.change_shown(tensor))
                    return tensor

            bridge.blocks[0].attn.get_submodule(hook.replace("__", ".")).__class__ = ShowsAnother
        return bridge

    return change_bridge


merged_heads = shown_as(hook_rot_q=lambda heads: heads.flatten(2))
one_token_less = shown_as(v__hook_out=lambda heads: heads[:, 1:])
whole_numbers = shown_as(hook_attn_scores=lambda scores: scores.to(torch.int64))
complex_pattern = shown_as(hook_pattern=lambda pattern: pattern.to(torch.complex64))
no_tensor = shown_as(hook_attn_scores=lambda scores: [scores])
merged_and_scored_wrongly = shown_as(
    hook_rot_q=lambda heads: heads.flatten(2), hook_attn_scores=lambda scores: scores + 1
)


class _OwnNames(nn.Module):
    """A Linear whose weight and bias have other names."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.kernel, self.offset = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.kernel, self.offset)


def own_names(bridge: Any) -> Any:
    """Return a bridge that is correct and keeps the weights of its unembedding under names of its own."""
    bridge.unembed.set_original_component(_OwnNames(bridge.unembed.original_component))
    return bridge
