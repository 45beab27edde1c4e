"""Who is listening: what decides whether a step may be taken the short way, and a tensor be overwritten."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from transformer_lens.model_bridge.generalized_components import LinearBridge


def is_heard(module: nn.Module) -> bool:
    """Whether calling a module calls a hook: TransformerLens's on a hook point, or any that torch knows of."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def is_changed(module: nn.Module) -> bool:
    """Whether calling a module runs something else than its class says: a forward of its own, or accelerate's."""
    return "forward" in module.__dict__ or "_hf_hook" in module.__dict__


def show(owner: nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What a hook point makes of a tensor; the tensor itself, and sooner, where nobody listens."""
    point = owner._modules[name]
    shown: torch.Tensor = point(tensor) if is_heard(point) else tensor  # type: ignore[misc, arg-type]
    return shown


def run_linear(linear: Any, tensor: torch.Tensor) -> torch.Tensor:
    """What the bridge of a Linear makes of a tensor, its hooks included."""
    if is_heard(linear) or is_changed(linear) or type(linear) is not LinearBridge:
        through: torch.Tensor = linear(tensor)
        return through
    return show(linear, "hook_out", linear._modules["_original_component"](show(linear, "hook_in", tensor)))


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether an `out=` variant can write to a tensor: no gradient, no function transform, no compiler."""
    return (
        type(tensor) is torch.Tensor
        and not tensor.requires_grad
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
