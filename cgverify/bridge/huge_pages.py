"""Memory for large tensors, in huge pages if the system has them.

**Weights** are read whole for each token. With addresses translated by 2 MiB instead of 4 KiB that is a tenth faster.

**Results.** A C library returns allocations above 32 MiB to the system as soon as they are free. The next one comes in
pages of 4 KiB, and the first write to each page is a fault. For the scores of 2048 tokens, 268 MB in float32, the
faults take as long as the product itself. Here the last buffer is kept, and is used again for the next result of its
size once no tensor refers to it.

**Logits** are kept by the caller, so each forward needs new memory for them: 52 MB for 256 tokens of CodeGen. A fault
for each 2 MiB instead of each 4 KiB makes that six times as fast. So it does for scores and patterns that hooks see,
since hooks may keep them.

Storages from here cannot be resized.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from threading import Lock
from typing import cast

import torch
from torch import Tensor, nn

from cgverify.bridge.fast_path import allows_out, has_hooks, has_own_forward, is_traced

LARGE_RESULT = 1 << 25
"""Bytes from which a freed result goes back to the system: the largest M_MMAP_THRESHOLD of glibc."""

LARGE_KEPT = 1 << 22
"""Bytes from which a result that the caller keeps is put into huge pages."""

HUGE_PAGE = 1 << 21
"""Bytes."""

_last: mmap.mmap | None = None
_idle_references = 0
"""The references to the last buffer while no tensor uses it. The number depends on the version of Python."""
_lock = Lock()


def result_buffer(
    *shape: int, dtype: torch.dtype, inputs: Sequence[Tensor], shown_to: Sequence[nn.Module] = ()
) -> Tensor | None:
    """Return an uninitialised contiguous tensor to pass as `out=`, or None if torch should allocate the result itself.

    Args:
        inputs: what the result is computed from. All of them must allow an `out=`.
        shown_to: hook points whose hooks, if there are any, may keep the result.
    """
    if is_traced():
        return None
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_KEPT:
        return None
    if any(map(has_hooks, shown_to)):
        return kept_buffer(*shape, dtype=dtype, inputs=inputs)
    if size < LARGE_RESULT or not _allows_buffer(inputs):
        return None
    with _lock:
        return torch.frombuffer(_reusable(size), dtype=dtype).view(shape)


def kept_buffer(*shape: int, dtype: torch.dtype, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return what `result_buffer` returns, but in new memory, for a result that the caller is expected to keep."""
    if is_traced():
        return None
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_KEPT or not _allows_buffer(inputs):
        return None
    return torch.frombuffer(_map(size), dtype=dtype).view(shape)


def _allows_buffer(inputs: Sequence[Tensor]) -> bool:
    on_cpu = all(tensor.device.type == "cpu" for tensor in inputs)
    return on_cpu and hasattr(mmap, "MADV_HUGEPAGE") and allows_out(*inputs)


def apply_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """Return `linear(x)`, which is expected to be kept, with the same bits.

    Args:
        linear: any module. Only a plain Linear with a bias writes into huge pages.
        x: `[batch, seq, in]`.
    """
    weight, bias = linear._parameters.get("weight"), linear._parameters.get("bias")
    plain = type(linear) is nn.Linear and not has_hooks(linear) and not has_own_forward(linear)
    if not plain or type(weight) is not nn.Parameter or type(bias) is not nn.Parameter or x.ndim != 3:
        return cast(Tensor, linear(x))
    recorded = torch.is_grad_enabled() and (weight.requires_grad or bias.requires_grad)
    if is_traced() or x.numel() // x.shape[-1] * len(weight) * x.itemsize < LARGE_KEPT:
        return cast(Tensor, linear(x))
    if recorded or not x.is_contiguous() or not x.dtype == weight.dtype == bias.dtype:
        return cast(Tensor, linear(x))
    inputs = bias.detach(), x.flatten(0, 1), weight.detach().t()
    out = kept_buffer(len(inputs[1]), len(weight), dtype=x.dtype, inputs=inputs)
    return cast(Tensor, linear(x) if out is None else torch.addmm(*inputs, out=out).view(*x.shape[:2], -1))


def weight_buffer(*shape: int, like: Tensor) -> Tensor | None:
    """Return uninitialised memory for a weight in `like`'s dtype, never used again; None if small or not on the CPU."""
    size = math.prod(shape) * like.element_size()
    if size < HUGE_PAGE or like.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    return torch.frombuffer(_map(size), dtype=like.dtype).view(shape)


@torch.no_grad()
def move_weights(modules: Iterable[nn.Module]) -> None:
    """Move the weights of plain Linears on the CPU into huge pages, unless they are small or processes share them."""
    for module in modules:
        weight = module._parameters.get("weight")
        if type(module) is not nn.Linear or type(weight) is not nn.Parameter or has_own_forward(module):
            continue
        if weight.device.type != "cpu" or weight.is_shared() or weight.is_inference() or not weight.is_contiguous():
            continue
        moved = weight_buffer(*weight.shape, like=weight)
        if moved is not None:
            weight.data = moved.copy_(weight)


def to_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `tensor.to(dtype)`."""
    out = None if tensor.dtype == dtype else result_buffer(*tensor.shape, dtype=dtype, inputs=(tensor,))
    return tensor.to(dtype) if out is None else out.copy_(tensor)


def _reusable(size: int) -> mmap.mmap:
    """Return the last buffer if it has this size and is idle, else a new one."""
    global _last, _idle_references
    if _last is None or len(_last) != size or sys.getrefcount(_last) > _idle_references:
        _last = _map(size)
        _idle_references = sys.getrefcount(_last)
    return _last


def _map(size: int) -> mmap.mmap:
    """Return memory.

    Raises:
        MemoryError: the system has none.
    """
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {size / 1e9:.1f} GB of memory: {error}") from error
    with suppress(OSError):  # a kernel built without huge pages: small pages work as well, but slower
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
