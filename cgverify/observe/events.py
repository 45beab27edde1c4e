"""What happens to a component between two equal calls, after which it must compute what it did: the case `state`.

Each event yields what is wrong with itself. That the component computes what it did is asked after each of them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from cgverify.observe.bits import same_tensor
from cgverify.observe.components import FLAGGED_HOOKS
from cgverify.observe.conditions import Conditions, Patch, apply_conditions
from cgverify.observe.fault import calls_a_side, is_ours
from cgverify.observe.generations import installed
from cgverify.observe.taps import Observation, Taps, conduct, swallows, watch_hooks
from cgverify.oracle.arithmetic import HALVES, SMALLEST_SUBNORMAL

Violations = Iterator[tuple[str, str]]
"""Wrong conduct: the tap concerned, and a sentence."""


@dataclass(frozen=True)
class CalledComponent:
    """A component of the candidate between two calls."""

    kind: str
    root: nn.Module
    """The bridge."""
    node: nn.Module
    points: dict[str, HookPoint]
    """Its hooks that fired in the first forward, by path."""
    inputs: dict[str, torch.Tensor]
    call: Callable[[nn.Module, str, dict[str, torch.Tensor]], Any]
    """Call a component, or a copy of it, of a kind on inputs."""
    first: Taps
    """What the first forward showed and returned, by hook path."""

    @calls_a_side
    def output(self, node: nn.Module | None = None, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return a copy of what a call without hooks returns first."""
        returned = self.call(node or self.node, self.kind, inputs or self.inputs)
        output = returned[0] if isinstance(returned, tuple) else returned
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"a {type(output).__name__} is returned where a tensor was before")
        return output.detach().cpu().clone()

    def parts(self) -> Iterator[CalledComponent]:
        """Yield attention and MLP of a block, to be called by themselves on the block's inputs."""
        for kind in ("attn", "mlp") if self.kind == "block" else ():
            node = self.node.get_submodule(kind)
            inputs = self.inputs if kind == "attn" else {"hidden_states": self.inputs["hidden_states"]}
            yield replace(self, kind=kind, node=node, inputs=inputs)

    def is_as_before(self, node: nn.Module | None = None) -> bool:
        return same_tensor(self.output(node), self.first["returned"])


Event = Callable[[CalledComponent], Violations]

MOST_COPIED = 1 << 22
"""The most weights of a component that is copied or moved. A larger one has the same code as that of a small model, and
takes time and memory."""


def is_large(node: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in node.parameters()) > MOST_COPIED


def raising_hook(called: CalledComponent) -> Violations:
    """Let a hook raise, whose exception must reach the caller."""
    middle = len(called.points) // 2
    for name, point in list(called.points.items())[middle : middle + 1]:
        if swallows(point, called.output):
            yield name, f"an exception that a hook raised at {name} did not reach the caller"


def refused_inputs(called: CalledComponent) -> Violations:
    """Call the component with inputs that it must refuse: of another width, or ids that are not integers.

    An id that is too large is not among them: on a GPU nothing works after it.
    """
    wrong = {
        name: x[..., :-1] if name == "hidden_states" else x.float() if name == "input_ids" else x
        for name, x in called.inputs.items()
    }
    try:
        called.output(inputs=wrong)
    except Exception as error:  # as it should
        if is_ours(error):
            raise
    yield from ()


def edited_inputs(called: CalledComponent) -> Violations:
    """Write other values into the memory of the inputs, call the component with them, and write the old ones again."""
    before = {name: x.clone() for name, x in called.inputs.items()}
    with torch.no_grad():
        called.output()
        try:
            for name, x in called.inputs.items():
                x.copy_(-x if name == "hidden_states" else x.flip(0))
            seen = called.output()
            expected = called.output(inputs={name: x.clone() for name, x in called.inputs.items()})
        finally:
            for name, x in called.inputs.items():
                x.copy_(before[name])
    if not same_tensor(seen, expected):
        yield "returned", "another tensor is returned for inputs that were edited in place than for copies of them"


def flags(called: CalledComponent) -> Violations:
    """Call the component with each flag that turns hooks on, and turn them off again."""
    for flag in FLAGGED_HOOKS.get(called.kind, {}):
        with apply_conditions(Conditions(flags=(flag,)), called.node, called.root, torch.device("cpu")):
            called.output()
    yield from ()


def patches(called: CalledComponent) -> Violations:
    """Let hooks at every tap return other tensors, and remove them."""
    with watch_hooks(called.points, Observation(), {name: Patch(name, 0) for name in called.points}):
        called.output()
    yield from ()


def training(called: CalledComponent) -> Violations:
    """Call the component in training mode, where it must drop what has a rate of dropout, with gradients."""
    device = next(iter(called.inputs.values())).device
    with apply_conditions(Conditions(dropout=0.5, gradients=True), called.node, called.root, device):
        if installed().dropout_rates(called.node) and called.is_as_before():
            yield "returned", "nothing is dropped in training mode after a forward in eval mode"


def moves(called: CalledComponent) -> Violations:
    """Move the component to a wider dtype, call it there, and move it back."""
    weight = next(called.node.parameters(), None)
    if weight is None:
        return
    dtype = weight.dtype
    wide = torch.float32 if dtype in HALVES else torch.float64
    if wide == dtype or (wide is torch.float64 and weight.device.type != "cpu"):  # another device may have no float64
        return
    # The sin/cos table may have another dtype than the weights, which a move back does not restore.
    buffers = [
        (module, name, buffer) for module in called.node.modules() for name, buffer in module.named_buffers("", False)
    ]
    widened = {name: x.to(wide) if x.is_floating_point() else x for name, x in called.inputs.items()}
    try:
        _move(called.node, wide)
        called.output(inputs=widened)
    finally:
        _move(called.node, dtype)
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
    yield from ()


def edits(called: CalledComponent) -> Violations:
    """Double weights in place, of which the next call must know, and halve them again."""
    for group, taps in _EDITED.get(called.kind, {}).items():
        weights = [weight for path in group.split(" ") for weight in _weights(called.node, path)]
        seen = Observation()
        _scale(weights, 2.0)
        try:
            with watch_hooks({tap: called.points[tap] for tap in taps if tap in called.points}, seen, {}):
                called.output()
            if "hook_out" in taps:  # without hooks, it may be computed by other code
                seen.taps["returned"] = called.output()
        finally:
            _scale(weights, 0.5)
        for tap, tensor in seen.taps.items() if weights else ():
            if not _is_double(tensor, called.first[tap]):
                yield tap, f"{tap} does not double if the weight that makes it is doubled in place"


def _is_double(tensor: torch.Tensor, half: torch.Tensor) -> bool:
    """Whether a tensor is another one doubled. A result that is subnormal is rounded otherwise than its half."""
    doubled = 2 * half
    if tensor.shape != half.shape or tensor.dtype != half.dtype:
        return False
    near = (tensor - doubled).abs() <= 4 * SMALLEST_SUBNORMAL[tensor.dtype]
    return bool((near | (tensor == doubled)).all())  # an infinity has no distance


def copies(called: CalledComponent) -> Violations:
    """Make a deep copy, which must compute the same with weights of its own, and edit its weights."""
    duplicate = _deep_copy(called.node)
    own, others = (
        {id_: name for name, tensor in _tensors(node) for id_ in [tensor.untyped_storage().data_ptr()]}
        for node in (called.node, duplicate)
    )
    for memory in own.keys() & others.keys():
        yield own[memory], f"a deep copy shares the memory of {own[memory]}"
    if not called.is_as_before(duplicate):
        yield "returned", "a deep copy returns another tensor"
    separate = [each for each in duplicate.parameters() if each.untyped_storage().data_ptr() not in own]
    _scale(separate, 0.0)
    if separate and called.is_as_before(duplicate):
        yield "returned", "a deep copy computes with other weights than its own"


EVENTS: dict[str, Event] = {
    "a hook raised": raising_hook,
    "inputs were refused": refused_inputs,
    "inputs were edited in place": edited_inputs,
    "flags were turned on and off": flags,
    "hooks that returned other tensors are removed": patches,
    "a forward in training mode with gradients": training,
    "a move to a wider dtype and back": moves,
    "an edit of weights is undone": edits,
    "a deep copy was made and edited": copies,
}
"""By what has happened, in words."""

OF_PARTS = (refused_inputs, edited_inputs)
"""The events that the parts of a block go through too, since a block gives them neither wrong inputs nor the same
tensor twice."""


def go_through(called: CalledComponent, events: Sequence[str]) -> Violations:
    """Let events happen in turn, and yield what is wrong with each, or after it. The random state is restored."""
    left_out = {moves, copies} if is_large(called.node) else set()
    if called.kind not in FLAGGED_HOOKS:
        left_out.add(flags)
    for number, (what, event) in enumerate(EVENTS.items()):
        if event in left_out or what not in events:
            continue
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bridge may warn that the fused weight has changed
            torch.default_generator.manual_seed(number)
            before = conduct(called.node, draws=True)
            with torch.enable_grad():
                for asked in (called, *(called.parts() if event in OF_PARTS else ())):
                    yield from event(asked)
                recording = torch.is_grad_enabled()
            if not recording or conduct(called.node, draws=True) != before:
                yield "torch", f"gradients are no longer recorded, or modes are others, after {what}"
            if not called.is_as_before():
                yield "returned", f"another tensor is returned after {what}"
                return


_BLOCK = {
    "ln1": ("ln1.hook_out",),
    "attn.q attn.k attn.v": ("attn.q.hook_out", "attn.k.hook_out", "attn.v.hook_out"),
    "attn.o": ("attn.hook_out",),
    "mlp.in": ("mlp.in.hook_out",),
    "mlp.out": ("mlp.hook_out",),
}

_EDITED: dict[str, dict[str, tuple[str, ...]]] = {
    "block": _BLOCK,
    **{
        kind: {
            " ".join(part.removeprefix(f"{kind}.") for part in group.split()): tuple(
                tap.removeprefix(f"{kind}.") for tap in taps
            )
            for group, taps in _BLOCK.items()
            if group.startswith(f"{kind}.")
        }
        for kind in ("attn", "mlp")
    },
    **{kind: {"": ("hook_out",)} for kind in ("embed", "ln1", "ln_final", "unembed")},
}
"""By kind: the modules whose weights are doubled together, by path, and the hooks that then show twice as much."""


@calls_a_side
def _weights(node: nn.Module, path: str) -> list[torch.Tensor]:
    """Return weight and bias of a module of a bridge; nothing if it has none there."""
    try:
        module: Any = node.get_submodule(path)
    except AttributeError:
        return []
    module = getattr(module, "original_component", module)
    tensors = [module._parameters.get(name) for name in ("weight", "bias")]
    return [tensor for tensor in tensors if tensor is not None]


@calls_a_side
def _scale(tensors: Iterable[torch.Tensor], factor: float) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.mul_(factor)


@calls_a_side
def _move(node: nn.Module, dtype: torch.dtype) -> None:
    node.to(dtype)


@calls_a_side
def _deep_copy(node: nn.Module) -> nn.Module:
    return copy.deepcopy(node)


def _tensors(node: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from node.named_parameters()
    yield from node.named_buffers()
