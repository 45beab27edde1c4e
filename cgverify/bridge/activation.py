"""CodeGen's activation `gelu_new`, in pieces that stay in the processor's cache.

    gelu_new(x) = 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))

Hugging Face's module writes eight tensors of the MLP's width one after another, and autograd saves five of them. Here
the same operations run in the same order on one piece after another, so the bits are the same, and autograd saves two:
x and the tanh. Source: `NewGELUActivation` in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers.activations import NewGELUActivation

from cgverify.bridge.fast_path import is_transformed

PIECE = 1 << 16
"""Values in a piece: 256 KiB in float32."""

_FACTOR, _CUBIC = math.sqrt(2.0 / math.pi), 0.044715


class GeluNew(NewGELUActivation):  # type: ignore[misc]
    """Hugging Face's activation, computed in pieces where no one can notice."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            type(input) is not Tensor
            or input.device.type != "cpu"
            or not input.is_contiguous()
            or is_transformed()
            or torch._C._is_any_autocast_enabled()
        ):
            return cast(Tensor, super().forward(input))
        recorded = input.requires_grad and torch.is_grad_enabled()
        return cast(Tensor, _in_pieces(input)) if recorded else _value(input)


def use_pieces(model: Any) -> None:
    """Turn Hugging Face's `gelu_new` of each MLP of a CodeGen model into ours. torch's hooks on it stay."""
    for block in model.transformer.h:
        act = getattr(block.mlp, "act", None)
        if type(act) is NewGELUActivation:
            act.__class__ = GeluNew


def _value(x: Tensor) -> Tensor:
    if x.numel() <= PIECE:
        return torch.mul(x, 0.5).mul_(_inner(x).tanh_().add_(1.0))
    result = torch.empty_like(x)
    for piece, out in _pieces(x, result):
        torch.mul(piece, 0.5, out=out).mul_(_inner(piece).tanh_().add_(1.0))
    return result


def _value_and_tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    result, saved = torch.empty_like(x), torch.empty_like(x)
    for piece, out, tanh in _pieces(x, result, saved):
        _inner(piece, out=tanh).tanh_()
        torch.mul(piece, 0.5, out=out).mul_(tanh + 1.0)
    return result, saved


def _inner(x: Tensor, out: Tensor | None = None) -> Tensor:
    return torch.pow(x, 3.0, out=out).mul_(_CUBIC).add_(x).mul_(_FACTOR)


def _derivative(x: Tensor, tanh: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of x, with the operations of autograd in its order."""
    result = torch.empty_like(x)
    for piece, t, g, out in _pieces(x, tanh, grad.contiguous(), result):
        of_sum = torch.ops.aten.tanh_backward(torch.mul(piece, 0.5).mul_(g), t).mul_(_FACTOR)
        of_cube = torch.pow(piece, 2.0).mul_(3.0).mul_(of_sum * _CUBIC)
        torch.add(of_sum, of_cube, out=out).add_((t + 1.0).mul_(g).mul_(0.5))
    return result


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)


class _InPieces(torch.autograd.Function):
    """The activation under autograd. A backward that is differentiated itself records Hugging Face's operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result, tanh = _value_and_tanh(x)
        ctx.save_for_backward(x, tanh)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, tanh = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed() or type(grad) is not Tensor:
            with torch.enable_grad():
                (of_x,) = torch.autograd.grad(NewGELUActivation()(x), x, grad, create_graph=True)
            return cast(Tensor, of_x)
        return _derivative(x, tanh, grad)


_in_pieces: Any = _InPieces.apply
