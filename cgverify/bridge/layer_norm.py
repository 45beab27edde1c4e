"""A layer norm whose hooks show the tensors that are used.

A layer norm maps x to `(x − mean) / scale · weight + bias`, with `scale = √(variance + eps)`. `hook_scale` shows the
scale, and `hook_normalized` shows `(x − mean) / scale`. While neither has hooks, Hugging Face's module runs as it is.
While one of them has, the norm is computed from what the hooks return:

| dtype of x | normalized | output |
|---|---|---|
| float32, float64 | `(x − mean) · (1 / scale)` | `normalized · weight + bias`, rounded once |
| bfloat16, float16, computed in float32 | `x · (1 / scale) − mean · (1 / scale)`, the sum rounded once | the same |

That is the order of operations of torch's kernels on the CPU (`layer_norm_kernel.cpp` in ATen), and `addcmul` is the
sum that is rounded once. The kernels sum mean and variance in an order of their own, so both are read back from them.
Output and gradients thus have the bits of Hugging Face's, unless a hook changes something.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import NormalizationBridge

from cgverify.bridge.components import DirectCall
from cgverify.bridge.fast_path import allows_in_place, call_hook_point, has_hooks, is_transformed, runs_only_forward
from cgverify.bridge.module_hooks import replaced_forward


class LayerNormBridge(DirectCall, NormalizationBridge):  # type: ignore[misc]
    """The bridge of a layer norm, with `hook_scale` `[…, 1]` and `hook_normalized` `[…, d_model]`.

    Both hooks see float32, or float64 in a float64 model. The output has the dtype of Hugging Face's.
    """

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Return the normalized hidden states, `[…, d_model]`."""
        own = self.__dict__["_modules"]
        if runs_only_forward(*own.values()):
            return cast(Tensor, own["_original_component"].forward(hidden_states))
        if torch.compiler.is_compiling() or self._is_listened_to() or not self._is_quiet():
            return cast(Tensor, self._forward_with_hooks(hidden_states))
        return cast(Tensor, own["_original_component"](hidden_states))

    def _is_listened_to(self) -> bool:
        own = self.__dict__["_modules"]
        return has_hooks(own["hook_scale"]) or has_hooks(own["hook_normalized"])

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a compiler leaves out a forward that is replaced
    def _forward_with_hooks(self, hidden_states: Tensor) -> Tensor:
        hidden_states = call_hook_point(self, "hook_in", hidden_states)
        wrapped: Any = self.original_component
        with ExitStack() as stack:
            if self._is_listened_to():
                for norm in wrapped.modules():  # an adapter's wrapper calls one of several
                    own = vars(norm).get("_old_forward", norm.forward)  # accelerate wraps the module's forward
                    if getattr(own, "__func__", None) is nn.LayerNorm.forward:
                        stack.enter_context(replaced_forward(norm, partial(self._normalize, norm)))
            normed = cast(Tensor, wrapped(hidden_states))
        return call_hook_point(self, "hook_out", normed)

    def _normalize(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        """Return what `norm` makes of x, computed from what the hooks return."""
        kernel = _Kernel.of(norm, x)
        dtype, reciprocal, mean = kernel.reciprocal.dtype, kernel.reciprocal, kernel.mean
        wide, unedited = x.to(dtype), reciprocal.reciprocal()
        scale = unedited.clone()
        if not allows_in_place(x):
            variance = wide.var(-1, unbiased=False, keepdim=True)
            scale = _with_value((variance + norm.eps).sqrt(), unedited)
            mean = _with_value(wide.mean(-1, keepdim=True), mean)
        watch = _Watch()
        scale = watch.show(scale, "scale")
        used_scale = self.hook_scale(scale)
        inverse = used_scale.reciprocal()
        # Where no hook has changed the scale, the kernel's own reciprocal, to the last bit.
        inverse = inverse + torch.where(used_scale == unedited, reciprocal - inverse, 0).detach()
        rounded = x.dtype != dtype
        normalized = torch.addcmul(-mean * inverse, wide, inverse) if rounded else (wide - mean) * inverse
        normalized = watch.show(normalized, "normalized")
        used = self.hook_normalized(normalized)
        if watch.saw_no_change(used_scale, used):
            return cast(Tensor, _like_kernel(x, scale, normalized, norm.weight, norm.bias, kernel, watch))
        output = torch.addcmul(norm.bias.to(dtype), used, norm.weight.to(dtype))
        return output.to(kernel.output.dtype).contiguous()


@dataclass(frozen=True)
class _Kernel:
    """What torch's fused kernel returns for a layer norm and its input."""

    output: Tensor
    mean: Tensor
    reciprocal: Tensor
    """Of the scale; both statistics in float32 or wider."""
    saved: tuple[Tensor, ...]
    """Both statistics in the dtype in which autograd saves them."""
    shape: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, norm: nn.LayerNorm, x: Tensor) -> _Kernel:
        output, *saved = torch.native_layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        mean, reciprocal = saved
        if mean.dtype.itemsize < 4:  # rounded to 16 bits, but not if the weights are wider
            weights = norm.weight.float(), norm.bias.float()
            _, mean, reciprocal = torch.native_layer_norm(x, norm.normalized_shape, *weights, norm.eps)
        return cls(output, mean, reciprocal, tuple(saved), norm.normalized_shape)


class _Watch:
    """Notice whether hooks change what they are shown, and separate the gradients that belong to the shown tensors.

    If nothing was changed, x gets its gradient from torch's kernel. The shown tensors get theirs as well, but must not
    pass it on to x once more. In inference mode and under a transform or a compiler, changes count as possible.
    """

    def __init__(self) -> None:
        self._blind = is_transformed() or torch.is_inference_mode_enabled()
        self._shown: list[tuple[Tensor, int]] = []
        self._passed: dict[str, tuple[int, Tensor]] = {}

    def show(self, tensor: Tensor, name: str) -> Tensor:
        """Return the same tensor, whose gradient `pass_on` sees."""
        if self._blind:
            return tensor
        shown: Tensor = _shown(tensor, name, self)
        self._shown.append((shown, shown._version))
        return shown

    def saw_no_change(self, *used: Tensor) -> bool:
        """Return whether hooks have returned the tensors that were shown, in that order, unchanged."""
        return not self._blind and all(
            now is shown and now._version == version for now, (shown, version) in zip(used, self._shown, strict=True)
        )

    def remember(self, **gradients: Tensor) -> None:
        """Remember the gradients of shown tensors that are already part of x's in this backward."""
        task = torch._C._current_graph_task_id()
        self._passed = {name: (task, gradient) for name, gradient in gradients.items()}

    def pass_on(self, name: str, gradient: Tensor) -> Tensor:
        """Return the part of a shown tensor's gradient that x does not have yet: what hooks have added or changed."""
        task, passed = self._passed.pop(name, (None, gradient))
        if task != torch._C._current_graph_task_id():
            return gradient
        return torch.where(gradient == passed, 0, gradient - passed)


class _Shown(torch.autograd.Function):
    """A tensor that hooks see."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, name: str, watch: _Watch) -> Tensor:
        ctx.mark_dirty(tensor)
        ctx.name, ctx.watch = name, watch
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.watch.pass_on(ctx.name, grad), None, None


class _LikeKernel(torch.autograd.Function):
    """The kernel's output and gradients. The tensors that hooks have seen get their gradients as well."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, kernel, ctx.watch = arguments
        ctx.save_for_backward(*tensors, *kernel.saved)
        ctx.shape = kernel.shape
        return cast(Tensor, kernel.output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, normalized, weight, bias, *saved = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
            grad, x, ctx.shape, *saved, weight, bias, wanted
        )
        of_normalized = grad.to(scale.dtype) * weight.to(scale.dtype)
        of_scale = -(of_normalized * normalized).sum(-1, keepdim=True) / scale
        ctx.watch.remember(scale=of_scale, normalized=of_normalized)
        return of_x, of_scale, of_normalized, of_weight, of_bias, None, None


_shown: Any = _Shown.apply
_like_kernel: Any = _LikeKernel.apply


def _with_value(differentiable: Tensor, value: Tensor) -> Tensor:
    """Return `value`, bit for bit, with the gradient of `differentiable`."""
    return differentiable - differentiable.detach() + value
