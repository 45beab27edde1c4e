"""When a tensor may be overwritten: nobody has seen it, and nothing but its value is at stake."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad
from transformer_lens.hook_points import HookPoint


def is_heard(point: HookPoint) -> bool:
    """Whether a hook is attached, be it TransformerLens's or one that was registered with torch directly."""
    return bool(point._forward_hooks or point._forward_pre_hooks or point._backward_hooks or point._backward_pre_hooks)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether an `out=` variant can write to a tensor: no gradient, no function transform, no compiler."""
    return (
        type(tensor) is torch.Tensor
        and not tensor.requires_grad
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
