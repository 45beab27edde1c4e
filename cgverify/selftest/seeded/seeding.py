"""Ways to seed a fault: replace methods of attention, or change modules of a booted bridge.

Paths are those of a bridge over one block, the one in view, such as `blocks.0.attn.q`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.bridge.wrapped_attention import TABLE_PER_ATTENTION, TABLE_PER_MODEL, WrappedAttention, form_of
from cgverify.checkpoint.out_of_view import has_memory
from cgverify.selftest.candidates import Implementation

NORMS = ("blocks.0.ln1", "ln_final")
"""The paths of both layer norms."""


def attention(**replacements: Callable[..., Any]) -> Implementation:
    """Return a subclass of the attention bridge that replaces some of its methods.

    A replacement takes the bridge, the method that it replaces, and the arguments of that method.
    """

    def method(name: str, replacement: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
            return replacement(self, partial(getattr(CodeGenAttentionBridge, name), self), *args, **kwargs)

        return replaced

    return type("Seeded", (CodeGenAttentionBridge,), {name: method(name, new) for name, new in replacements.items()})


def replacing(method: str) -> Callable[[Callable[..., Any]], Implementation]:
    """Return a function that makes an attention bridge from the replacement of one method, see `attention`."""
    return lambda replacement: attention(**{method: replacement})


def returning(change: Callable[..., Any]) -> Implementation:
    """Return an attention bridge whose forward returns a function of the output and the pattern."""
    return attention(forward=lambda _, forward, *args, **kwargs: change(*forward(*args, **kwargs)))


def scales_before_mask(bridge: Any) -> bool:
    """Return whether the attention that a bridge wraps scales the scores before it adds the mask."""
    return form_of(bridge.original_component) is TABLE_PER_MODEL


def other_form(bridge: Any) -> WrappedAttention:
    """Return the form of `CodeGenAttention` that a bridge does not wrap."""
    return TABLE_PER_ATTENTION if scales_before_mask(bridge) else TABLE_PER_MODEL


def cast_rotated_as(form: Callable[[Any], WrappedAttention]) -> Callable[..., None]:
    """Return a replacement of `set_original_component` with which q and k are cast as another form casts them."""

    def wrap(bridge: Any, inherited: Callable[..., Any], original: Any) -> None:
        inherited(original)
        bridge._form = copy(bridge._form)
        bridge._form.cast_rotated = form(bridge).cast_rotated

    return wrap


def keep(bridge: Any, method: Callable[..., Any], *args: Any) -> Any:
    """Replace a method by itself, and keep its last result in `bridge.kept`."""
    bridge.__dict__["kept"] = result = method(*args)
    return result


def changed(change: Callable[[Any], object]) -> Implementation:
    """Return a function that changes the parts in view of a booted bridge and returns the bridge."""

    def candidate(bridge: Any) -> Any:
        change(_with_the_block_in_view(bridge))
        return bridge

    return candidate


def _with_the_block_in_view(bridge: Any) -> Any:
    """Return the config and the parts of a bridge, with one of its blocks, the first one with memory."""
    parts: Any = nn.Module()
    parts.cfg = bridge.cfg
    for name, part in bridge.named_children():
        parts.add_module(name, part)
    parts.blocks = nn.ModuleList([next(filter(has_memory, bridge.blocks), bridge.blocks[0])])
    return parts


def rebuilt(change: Callable[[Any], object]) -> Implementation:
    """Return a function that changes a booted bridge as a whole, whichever of its blocks are in view."""

    def candidate(bridge: Any) -> Any:
        change(bridge)
        return bridge

    return candidate


def in_view(block: Any) -> bool:
    """Return whether a block of a bridge has its weights."""
    return has_memory(block)


def computed(function: Callable[..., Any], *paths: str) -> Implementation:
    """Return a function that lets modules of a bridge compute `function(module, *inputs)`."""

    def change(bridge: Any) -> None:
        for path in paths:
            module = bridge.get_submodule(path).original_component
            module.forward = partial(function, module)

    return changed(change)


def reweighted(path: str, change: Callable[[Tensor], Tensor]) -> Implementation:
    """Return a function that changes the weight of one module of a bridge."""

    def replace(bridge: Any) -> None:
        weight = bridge.get_submodule(path).original_component.weight
        weight.data = change(weight.data)

    return changed(replace)


def set_activation(bridge: Any, function: Callable[[Any, Tensor], Tensor]) -> None:
    """Let the activation of a bridge's MLP compute `function(activation, x)`."""
    mlp = bridge.blocks[0].mlp.original_component
    mlp.act = _Activation(partial(function, mlp.act))


class _Activation(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def activated(function: Callable[[Any, Tensor], Tensor]) -> Implementation:
    """Return a function that lets the activation of a bridge's MLP compute `function(activation, x)`."""
    return changed(lambda bridge: set_activation(bridge, function))


def rehooked(path: str, call: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Implementation:
    """Return a function that lets a hook point of a bridge compute `call(show, x)`, where `show` calls its hooks."""

    class SeededHookPoint(HookPoint):  # type: ignore[misc]
        def __call__(self, x: Tensor) -> Tensor:
            return call(super().__call__, x)

    return changed(lambda bridge: setattr(bridge.get_submodule(path), "__class__", SeededHookPoint))


def deaf(path: str) -> Implementation:
    """Return a function that lets a hook point of a bridge show a tensor and ignore what its hooks return."""

    def call(show: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        show(x)
        return x

    return rehooked(path, call)


def edited(edit: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Return a function that makes a copy of a tensor and edits it in place."""

    def copy(x: Tensor) -> Tensor:
        x = x.clone()
        edit(x)
        return x

    return copy


def through(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round x to another dtype and cast it back."""
    return x.to(dtype).to(x.dtype)


def through_bfloat16(x: Tensor) -> Tensor:
    """Round x to bfloat16 and cast it back."""
    return through(x, torch.bfloat16)


def widened(x: Tensor) -> Tensor:
    """Cast x to float32, unless it is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def strided(x: Tensor) -> Tensor:
    """Return a copy of x whose last two dimensions are stored the other way round."""
    return x.mT.contiguous().mT


@contextlib.contextmanager
def temporarily(owner: Any, name: str, value: object) -> Iterator[None]:
    """Set an attribute, and set it back at the end: to False, as a flag, if there was none."""
    before = getattr(owner, name, False)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def is_hidden(mask: Tensor) -> Tensor:
    """Return where an additive mask hides a key."""
    return mask <= torch.finfo(mask.dtype).min
