"""The conditions under which a forward runs, equal on both sides if both have them.

They are what a caller sets up around a model: training mode and the random state, gradients, autocast, a sin/cos table
that was cast, flags of the bridge, hooks that intervene. Everything that they change is restored afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import nn

from cgverify.common.errors import DeviceError
from cgverify.observe.fault import calls_a_side
from cgverify.observe.generations import installed

LARGE = 100.0
"""The factor of large values."""


@dataclass(frozen=True)
class Patch:
    """A hook that returns another tensor than the one that it receives."""

    tap: str
    seed: int
    rounded_to: torch.dtype | None = None
    """A narrower dtype that the values are rounded to."""
    large: bool = False
    """Whether the values of the last token or head are large."""
    strided: bool = False
    """Whether a new tensor is not contiguous."""
    edits: bool = False
    """Whether the values are written into the tensor that the hook receives."""
    is_silent: bool = False
    """Whether the hook returns nothing."""
    removes_itself: bool = False
    """Whether the hook is removed when it fires."""
    is_followed: bool = False
    """Whether a hook that only listens follows at the same place, and must be shown what this one returned."""

    def __call__(self, seen: torch.Tensor) -> torch.Tensor:
        """Return standard normal values in the shape and dtype and on the device of `seen`; for tokens, reverse them.

        The values are drawn on the CPU in float32 from the seed and the tap's name: one seed is one tensor everywhere.
        """
        if not seen.is_floating_point():
            return seen.cpu().flatten().flip(0).view_as(seen).to(seen.device)
        drawn = _drawn(f"{self.tap} {self.seed}", seen, self.rounded_to)
        if self.large:
            drawn[:, -1] *= LARGE
        if self.strided:
            drawn = drawn.mT.contiguous().mT
        return seen.copy_(drawn) if self.edits else drawn


@dataclass(frozen=True, eq=False)
class Substitute:
    """A hook that returns a given tensor, computed for this very forward."""

    tap: str
    tensor: torch.Tensor
    edits: ClassVar = False
    is_silent: ClassVar = False
    removes_itself: ClassVar = False
    is_followed: ClassVar = False

    def __call__(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the tensor in the shape and on the device of `seen`."""
        return self.tensor.reshape(seen.shape).to(seen.device)


@dataclass(frozen=True)
class Copy:
    """A hook that returns a copy of what it receives, through which the gradient must go."""

    edits: ClassVar = False
    is_silent: ClassVar = False
    removes_itself: ClassVar = False
    is_followed: ClassVar = False

    def __call__(self, seen: torch.Tensor) -> torch.Tensor:
        return seen.clone()


@dataclass(frozen=True)
class Cotangent:
    """The tensors G in Σ sum(tensor · G), over what is returned, of which the gradients are taken."""

    seed: int
    rounded_to: torch.dtype | None = None
    """A narrower dtype that the values are rounded to."""
    with_pattern: bool = False
    """Whether the returned attention pattern has one too."""

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Return standard normal values in the shape and dtype and on the device of the output."""
        return _drawn(f"cotangent {self.seed}", output, self.rounded_to)

    def of_pattern(self, pattern: torch.Tensor) -> torch.Tensor:
        """Return G of the returned pattern."""
        return _drawn(f"cotangent of the pattern {self.seed}", pattern, self.rounded_to)

    def direction(self, x: torch.Tensor) -> torch.Tensor:
        """Return the direction in x in which derivatives are taken."""
        return _drawn(f"direction {self.seed}", x, self.rounded_to)


def _drawn(name: str, like: torch.Tensor, rounded_to: torch.dtype | None) -> torch.Tensor:
    # torch's CPU generator keeps 32 bits of a seed.
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randn(like.shape, generator=generator).to(rounded_to or like.dtype).to(like.dtype).to(like.device)


@dataclass(frozen=True)
class Place:
    """Where a component is, on which its cache depends."""

    layer: int
    n_heads: int


Call = Callable[[dict[str, Any], Any], Any]
"""Call a component on inputs, with a cache or None."""

Derivative = Callable[[Call, dict[str, Any], Cotangent, Place], dict[str, torch.Tensor]]
"""Call a component, perhaps several times, and return derivatives by tap."""


@dataclass(frozen=True)
class Conditions:
    dropout: float | None = None
    """p of every dropout. None leaves all rates as they are."""
    attention_dropout: float | None = None
    """p of the dropout of the pattern, if it is another one."""
    training: bool = True
    """Whether a given dropout comes with training mode."""
    random_state: int | None = None
    """The seed of torch's random state before each side's forward. None leaves the state unchanged."""
    gradients: bool = False
    cotangent: Cotangent | None = None
    """If given, the gradients of what is returned become taps."""
    derivative: Derivative | None = None
    """If given, its result is all that is observed: no hook is attached."""
    autocast: torch.dtype | None = None
    cast_table: bool = False
    """Whether the sin/cos table was cast with the model, as `model.to(dtype)` does."""
    flags: tuple[str, ...] = ()
    """Settings of the bridge's config that are on. Hugging Face has none of them."""
    patch: Patch | Substitute | None = None
    """A hook on the candidate. Hugging Face has no hooks."""
    second_patch: Patch | None = None
    """Another hook on the candidate, on a later tap."""
    by_position: bool = False
    """Whether arguments are given by position; see `cgverify.observe.generations.leading_arguments`."""
    use_cache: bool = True
    """Whether `use_cache=True` is given along with a cache."""

    def rounded_to(self, dtype: torch.dtype) -> Conditions:
        """Return these conditions with drawn values rounded to `dtype`."""
        return replace(
            self,
            cotangent=self.cotangent and replace(self.cotangent, rounded_to=dtype),
            patch=replace(self.patch, rounded_to=dtype) if isinstance(self.patch, Patch) else self.patch,
            second_patch=self.second_patch and replace(self.second_patch, rounded_to=dtype),
        )

    @property
    def patches(self) -> tuple[Patch | Substitute, ...]:
        """The hooks that intervene, in the order of the computation."""
        return tuple(each for each in (self.patch, self.second_patch) if each is not None)

    @property
    def for_reference(self) -> Conditions:
        """These conditions without those that only a bridge can have."""
        return replace(self, flags=(), patch=None, second_patch=None)


PLAIN = Conditions()
"""Eval mode, no gradients, nothing changed: the conditions of most cases."""


@contextlib.contextmanager
def apply_conditions(
    conditions: Conditions, module: nn.Module, root: nn.Module, device: torch.device
) -> Iterator[None]:
    """Apply all conditions except the patch while a component's module runs.

    Args:
        root: the model or bridge that the module belongs to. Flags are set in its `cfg`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(conditions.gradients))
        if conditions.autocast is not None:
            stack.enter_context(_autocast(device, conditions.autocast))
        if conditions.dropout is not None:
            stack.enter_context(_dropout(module, conditions))
        if conditions.cast_table:
            stack.enter_context(_cast_buffers([module, *installed().shared_modules(root)]))
        if conditions.flags:
            stack.enter_context(_attributes_set([(root.cfg, flag) for flag in conditions.flags], True))
        if conditions.random_state is not None:
            stack.enter_context(_seeded(conditions.random_state, device))
        yield


@contextlib.contextmanager
def _autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, dtype))
        if not torch.is_autocast_enabled(device.type):  # torch only warns that it ignores a dtype
            raise DeviceError(
                f"The {device} device has no autocast to {dtype}: leave the cases autocast and patched out there."
            )
        yield


@contextlib.contextmanager
def _dropout(module: nn.Module, conditions: Conditions) -> Iterator[None]:
    """Set rates of dropout, and the mode. The rates are set in the modules, which do not read them from the config."""
    modes = [(part, part.training) for part in module.modules()]
    p, own = conditions.dropout, conditions.attention_dropout
    with (
        _attributes_set(installed().dropout_rates(module), p),
        _attributes_set(installed().attention_dropout_rates(module), p if own is None else own),
    ):
        module.train(conditions.training)
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


@contextlib.contextmanager
def _cast_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Call `to(dtype)` of modules with the dtype of the first one's weights: only buffers can change."""
    dtype = next(modules[0].parameters()).dtype
    kept = [
        (owner, name, buffer)
        for module in modules
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    for module in modules:
        module.to(dtype)
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)


@contextlib.contextmanager
@calls_a_side
def _attributes_set(attributes: Sequence[tuple[Any, str]], value: object) -> Iterator[None]:
    """Set attributes, each given with its owner, to a value."""
    before = [(owner, name, getattr(owner, name)) for owner, name in attributes]
    try:
        for owner, name in attributes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, old in before:
            setattr(owner, name, old)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the random state of the CPU and of the device."""
    own = [] if device.type == "cpu" else [device]
    if own and not hasattr(torch.get_device_module(device), "get_rng_state"):
        raise DeviceError(f"The {device} device has no random state to set: leave the case train out there.")
    with torch.random.fork_rng(own, device_type=device.type):
        torch.manual_seed(seed)
        yield
