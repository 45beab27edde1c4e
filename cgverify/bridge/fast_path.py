"""Decide when a step may take a shortcut: skip a hook point, work in place, or write into a given buffer.

A shortcut is taken only if the caller cannot notice it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from transformer_lens.model_bridge.generalized_components import LinearBridge


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling a module calls any hook, of TransformerLens or of torch."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def runs_only_forward(*modules: nn.Module) -> bool:
    """Return whether calling each module would run the forward of its class, and nothing else would notice.

    One look at all modules of a component takes less time than calling each of them.
    """
    for module in modules:
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or "_hf_hook" in own
            or "_compiled_call_impl" in own
        ):
            return False
    return not (_has_any_global_hook() or is_transformed())  # a compiler and a trace record the calls of modules


def has_only_forward_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward hooks and no other, and none that is called after an error as well."""
    return not (
        module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._forward_hooks_always_called
        or _has_any_global_hook()
    )


def has_own_forward(module: nn.Module) -> bool:
    """Return whether an instance's forward replaces that of its class, as accelerate's does."""
    return "forward" in module.__dict__ or "_hf_hook" in module.__dict__


def call_hook_point(owner: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return what a hook point makes of a tensor, in the tensor's shape. A point without hooks is not called.

    TransformerLens shows hooks of q, k, v and z a view, `[batch, seq, heads, head_dim]`, of the tensor that is used.
    No gradient arrives at such a view, so the tensor is used in the shape that is shown.
    """
    point: Any = owner._modules[name]
    if not has_hooks(point):
        return tensor
    if point.hook_conversion is not None:
        shown = point.hook_conversion.convert(tensor)
        if shown is not tensor and point.hook_conversion.convert(shown) is shown:
            return cast(Tensor, point(shown)).reshape(tensor.shape)
    return cast(Tensor, point(tensor))


def is_plain_linear(bridge: Any) -> bool:
    """Return whether calling a Linear's bridge runs its hook points and the Linear, and nothing else."""
    return type(bridge) is LinearBridge and not has_hooks(bridge) and not has_own_forward(bridge)


def call_linear(bridge: Any, tensor: Tensor) -> Tensor:
    """Return what a Linear's bridge makes of a tensor, its hooks included."""
    if type(bridge) is LinearBridge and runs_only_forward(bridge, *bridge._modules.values()):
        return cast(Tensor, bridge._modules["_original_component"].forward(tensor))
    if not is_plain_linear(bridge):
        return cast(Tensor, bridge(tensor))
    product = bridge._modules["_original_component"](call_hook_point(bridge, "hook_in", tensor))
    return call_hook_point(bridge, "hook_out", product)


def is_traced() -> bool:
    """Return whether `torch.jit.trace` is running. Sizes are tensors then, and nothing may depend on their values."""
    return not torch.compiler.is_compiling() and torch._C._is_tracing()  # the compiler cannot ask the second


def is_transformed() -> bool:
    """Return whether tensors may carry more than their memory.

    They do under a function transform, a tangent, a compiler or a trace. A trace is checked by a second one without
    gradients, and both must have the same operations.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def allows_in_place(*tensors: Tensor) -> bool:
    """Return whether tensors may be written to: plain tensors without gradients that are not transformed."""
    for tensor in tensors:
        if type(tensor) is not Tensor or tensor.requires_grad:
            return False
    return not is_transformed()


def allows_out(*tensors: Tensor) -> bool:
    """Return whether an operation on tensors may be given an `out=`. Autocast does not cast its inputs then."""
    return allows_in_place(*tensors) and not torch._C._is_any_autocast_enabled()
