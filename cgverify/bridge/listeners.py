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


def is_bare(linear: Any) -> bool:
    """Whether calling the bridge of a Linear calls its hook points and the Linear, and nothing else."""
    return type(linear) is LinearBridge and not is_heard(linear) and not is_changed(linear)


def run_linear(linear: Any, tensor: torch.Tensor) -> torch.Tensor:
    """What the bridge of a Linear makes of a tensor, its hooks included."""
    if not is_bare(linear):
        through: torch.Tensor = linear(tensor)
        return through
    return show(linear, "hook_out", linear._modules["_original_component"](show(linear, "hook_in", tensor)))


def is_transformed() -> bool:
    """Whether a tensor may be more than its memory: a function transform, a tangent, or what a compiler traces."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def is_plain(*tensors: torch.Tensor) -> bool:
    """Whether tensors may be written to in place: no gradient, no function transform, no compiler."""
    for tensor in tensors:
        if type(tensor) is not torch.Tensor or tensor.requires_grad:
            return False
    return not is_transformed()


def takes_out(*tensors: torch.Tensor) -> bool:
    """Whether an operation on them may be given an `out=`, which autocast passes by, and whose memory a trace would
    write to in every later call."""
    return is_plain(*tensors) and not torch._C._is_any_autocast_enabled() and not torch._C._is_tracing()
