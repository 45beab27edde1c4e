"""The conditions under which a forward runs, the same on both sides where both have them.

They are what a caller sets up around a model: training mode and the random state, gradients, autocast, a table that was
cast, flags of the bridge, hooks that intervene. Whatever is changed is put back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from torch import nn


@dataclass(frozen=True)
class Patch:
    """A hook that returns another tensor than the one that it is shown."""

    tap: str
    seed: int
    rounded_to: torch.dtype | None = None
    """A narrower dtype that the values go through."""

    def __call__(self, seen: torch.Tensor) -> torch.Tensor:
        """Standard normal values in the shape, dtype and on the device of what was seen; tokens in reverse.

        Drawn on the CPU in float32 from the seed and the tap's name: one seed is one tensor everywhere.
        """
        if not seen.is_floating_point():
            return seen.flatten().flip(0).view_as(seen)
        return _drawn(f"{self.tap} {self.seed}", seen, self.rounded_to)


@dataclass(frozen=True, eq=False)
class Substitute:
    """A hook that returns a given tensor, which has been computed for this very forward."""

    tap: str
    tensor: torch.Tensor

    def __call__(self, seen: torch.Tensor) -> torch.Tensor:
        """The tensor in the shape and on the device of what was seen."""
        return self.tensor.reshape(seen.shape).to(seen.device)


@dataclass(frozen=True)
class Cotangent:
    """G: the gradients of a component are those of sum(output · G)."""

    seed: int
    rounded_to: torch.dtype | None = None
    """A narrower dtype that the values go through."""

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Standard normal values in the shape, dtype and on the device of the output, drawn as a patch is."""
        return _drawn(f"cotangent {self.seed}", output, self.rounded_to)


def _drawn(name: str, like: torch.Tensor, rounded_to: torch.dtype | None) -> torch.Tensor:
    # torch's CPU generator keeps 32 bits of a seed.
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randn(like.shape, generator=generator).to(rounded_to or like.dtype).to(like.device, like.dtype)


@dataclass(frozen=True)
class Conditions:
    dropout: float | None = None
    """p of every dropout, in training mode; None is eval mode."""
    random_state: int | None = None
    """The seed that torch is given before each side's forward; None leaves the state alone."""
    gradients: bool = False
    """Whether autograd records."""
    cotangent: Cotangent | None = None
    """Where gradients are asked for: what the output is multiplied with before it is summed."""
    autocast: torch.dtype | None = None
    cast_table: bool = False
    """Whether the sin/cos table was cast with the model, as `model.to(dtype)` does."""
    flags: tuple[str, ...] = ()
    """Settings of the bridge's config that are on. Hugging Face has none of them."""
    patch: Patch | Substitute | None = None
    """A hook on the candidate; Hugging Face has no hooks."""

    def rounded(self, dtype: torch.dtype) -> Conditions:
        """The same, with what is drawn in values that `dtype` has."""
        return replace(
            self,
            cotangent=self.cotangent and replace(self.cotangent, rounded_to=dtype),
            patch=replace(self.patch, rounded_to=dtype) if isinstance(self.patch, Patch) else self.patch,
        )

    @property
    def of_reference(self) -> Conditions:
        """Without what only a bridge can have."""
        return replace(self, flags=(), patch=None)


PLAIN = Conditions()
"""Eval mode, no gradients, nothing changed: what most cases ask for."""


@contextlib.contextmanager
def under(conditions: Conditions, module: nn.Module, device: torch.device, config: Any = None) -> Iterator[None]:
    """Run something on `module` under `conditions`, all but the patch.

    Args:
        config: a bridge's, which bears the flags; not needed where there are none.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(conditions.gradients))
        if conditions.autocast is not None:
            stack.enter_context(torch.autocast(device.type, conditions.autocast))
        if conditions.dropout is not None:
            stack.enter_context(_training(module, conditions.dropout))
        if conditions.cast_table:
            stack.enter_context(_cast(module))
        if conditions.flags:
            stack.enter_context(_switched_on(config, conditions.flags))
        if conditions.random_state is not None:
            stack.enter_context(_seeded(conditions.random_state, device))
        yield


@contextlib.contextmanager
def _training(module: nn.Module, p: float) -> Iterator[None]:
    """Training mode, with `p` in every `nn.Dropout`: CodeGen's attention and MLP ask these, not the config."""
    modes = [(part, part.training) for part in module.modules()]
    rates = [(part, part.p) for part in module.modules() if isinstance(part, nn.Dropout)]
    module.train()
    for dropout, _ in rates:
        dropout.p = p
    try:
        yield
    finally:
        for dropout, rate in rates:
            dropout.p = rate
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def _cast(module: nn.Module) -> Iterator[None]:
    """`module.to(dtype)`, dtype being its weights': only buffers can have had another one."""
    kept = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    module.to(next(module.parameters()).dtype)
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)


@contextlib.contextmanager
def _switched_on(config: Any, flags: tuple[str, ...]) -> Iterator[None]:
    before = {flag: getattr(config, flag) for flag in flags}
    try:
        for flag in flags:
            setattr(config, flag, True)
        yield
    finally:
        for flag, value in before.items():
            setattr(config, flag, value)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_accelerator(device)):
        torch.manual_seed(seed)
        yield


def _accelerator(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type
