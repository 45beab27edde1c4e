"""Observe one side: run a component and keep its intermediate tensors by name and in order.

A tap has the same name, shape and meaning on both sides: those of TransformerLens's hook. On the candidate a tap is
what a hook function receives. On the reference it is the tensor that Hugging Face really computed, caught by module
hooks (`cgverify/observe/generations/`). Each is copied at the moment it is seen, to the CPU, where it is judged.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint, LensHandle

from cgverify.observe.bits import same_tensor
from cgverify.observe.fault import calls_a_side, is_ours

Taps = dict[str, torch.Tensor]
RecordTap = Callable[[str, torch.Tensor], None]
"""Take a tap by its name."""


def cpu_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy with the same dtype and bits on the CPU, cut off from autograd."""
    return tensor.detach().to("cpu", copy=True)


@dataclass
class Observation:
    """What one forward of one side showed."""

    taps: Taps = field(default_factory=dict)
    replaced: Taps = field(default_factory=dict)
    """The tensors that patching hooks received, by the hook's path."""
    returned: str = ""
    """The form of what was returned: `a tensor`, `a tuple of 2`."""
    raised: BaseException | None = None
    forward_done: bool = False
    """Whether the forward has returned. Hooks that fire later belong to autograd, which may compute a part again."""
    violations: list[tuple[str, str]] = field(default_factory=list)
    """Wrong conduct, whatever the tensors are: the tap or input concerned, and a sentence."""
    silent_hooks: list[str] = field(default_factory=list)
    live: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """By hook path, and `returned`: each tensor as it was, and itself, which later forwards may overwrite."""

    def record(self, name: str, tensor: torch.Tensor) -> None:
        self.taps[name] = cpu_copy(tensor)

    def differences_from(self, fully_hooked: Observation) -> list[tuple[str, str]]:
        """Return violations for taps that differ here, without listening hooks, from a forward with all hooks."""
        listeners = "no other hook" if self.replaced else "no hook"
        return [
            (name, f"{name} is another tensor when {listeners} is attached")
            for here, there in ((self.taps, fully_hooked.taps), (self.replaced, fully_hooked.replaced))
            for name, tap in here.items()
            if name not in there or not same_tensor(tap, there[name])
        ]

    def keep(self, shown: Mapping[str, torch.Tensor]) -> None:
        """Keep the tensors themselves, by hook path, that this observation has copies of."""
        self.live = {name: (self.taps[name], tensor) for name, tensor in shown.items()}

    def changes_in(self, repeated: Observation) -> list[tuple[str, str]]:
        """Return violations for what changed since this forward, which `repeated` is equal to.

        Tensors may have been overwritten by later forwards, or differ in the repeated one.
        """
        overwritten = [
            (name, f"{name} was overwritten by a later forward")
            for name, (before, tensor) in self.live.items()
            if not same_tensor(before, tensor.cpu())
        ]
        differing = [
            (name, f"{name} is another tensor when the first forward is repeated")
            for name, (before, _) in self.live.items()
            if name in repeated.taps and not same_tensor(before, repeated.taps[name])
        ]
        fired = [
            (name, f"{name} fires, which it did not in the first forward")
            for name in repeated.live
            if name not in self.live
        ]
        return overwritten + differing + fired


@calls_a_side
def observe(run: Callable[[Observation], Any], inputs: Mapping[str, Any]) -> Observation:
    """Call `run`, which records its taps; note what it raised, and which inputs and global settings it changed.

    Raises:
        Exception: `run` raised it, and it is not the fault of a side; see `cgverify.observe.fault`.
    """
    observation = Observation()
    before = {name: cpu_copy(value) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    numerics = _numerics()
    try:
        with torch.no_grad():
            run(observation)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a candidate does is a finding, not our failure
        if is_ours(error):
            raise
        observation.raised = error
    for name, value in before.items():
        if not same_tensor(value, inputs[name].cpu()):
            observation.violations.append((name, f"the candidate changed its input {name} in place"))
    if _numerics() != numerics:
        observation.violations.append(
            ("torch", f"the candidate changed torch's settings from {numerics} to {_numerics()}")
        )
        dtype, precision, threads, flushes = numerics
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushes)
    return observation


def _numerics() -> tuple[torch.dtype, str, int, bool]:
    """Global settings that change what both sides compute."""
    subnormal = torch.tensor(torch.finfo(torch.float32).tiny) / 2
    flushes = not bool(subnormal * 1 != 0)
    return torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads(), flushes


def conduct(module: nn.Module, *, draws: bool) -> tuple[object, ...]:
    """Return what is set outside a call and must be the same after it.

    Args:
        draws: whether the call draws random numbers, so that the random state may change.
    """
    modes = tuple(part.training for part in module.modules())
    state = None if draws else torch.default_generator.get_state().numpy().tobytes()
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), modes, state


CONDUCT = ("whether gradients are recorded", "inference mode", "the training mode of a module", "torch's random state")
"""What each part of `conduct` is, for messages."""


# --- the candidate: TransformerLens's hooks ---------------------------------------------------------------------------


class Intervention(Protocol):
    """What a hook does with the tensor that it receives."""

    def __call__(self, seen: torch.Tensor, /) -> torch.Tensor:
        """Return the tensor to use from there on."""

    @property
    def edits(self) -> bool:
        """Whether the tensor that is received is written into."""

    @property
    def is_silent(self) -> bool:
        """Whether the hook returns nothing."""

    @property
    def removes_itself(self) -> bool:
        """Whether the hook is removed when it fires."""

    @property
    def is_followed(self) -> bool:
        """Whether a hook that only listens follows at the same place."""


Patches = Mapping[str, Intervention]
"""By a hook's path: what is done there."""


@contextlib.contextmanager
def watch_hooks(
    points: Mapping[str, HookPoint], observation: Observation, patches: Patches
) -> Iterator[dict[str, torch.Tensor]]:
    """Record what hooks of a bridge component receive, or what their patches return, under their paths.

    Args:
        points: the hooks to listen to, by path in the component: `hook_pattern`, `q.hook_out`, …

    Yields:
        the tensors themselves that were shown so far, by path.
    """
    shown: dict[str, torch.Tensor] = {}
    fired: Counter[str] = Counter()

    def listener(name: str) -> Callable[..., torch.Tensor | None]:
        def listen(tensor: torch.Tensor, hook: HookPoint) -> torch.Tensor | None:  # noqa: ARG001  passed by name
            if observation.forward_done:
                return None
            if not isinstance(tensor, torch.Tensor):
                observation.violations.append((name, f"{name} is shown a {type(tensor).__name__}, not a tensor"))
                return None
            patch = patches.get(name)
            if patch is not None:
                observation.replaced[name] = cpu_copy(tensor)
                tensor = patch(tensor)
            observation.record(name, tensor)
            shown[name] = tensor
            fired[name] += 1
            if patch is not None and patch.removes_itself:
                registered[name].hook.remove()
            return None if patch is None or patch.is_silent else tensor

        return listen

    shares_memory = any(patch.edits for patch in patches.values())  # other hooks may have shown what is edited

    def follower(name: str) -> Callable[..., None]:
        def follow(tensor: torch.Tensor, hook: HookPoint) -> None:  # noqa: ARG001  passed by name
            if not observation.forward_done and name in shown and not same_tensor(tensor.cpu(), observation.taps[name]):
                observation.violations.append((name, f"a second hook at {name} is not shown what the first returned"))

        return follow

    registered = {name: point.add_hook(listener(name)) for name, point in points.items()}
    handles = list(registered.items())
    followed = [name for name, patch in patches.items() if patch.is_followed and name in points]
    handles += [(name, points[name].add_hook(follower(name))) for name in followed]
    try:
        yield shown
    finally:
        for name, handle in handles:
            if not _detach(points[name], handle):
                observation.violations.append((name, f"the candidate removed a hook that was attached at {name}"))
        observation.silent_hooks = [name for name in points if not fired[name]]
        for name, tensor in shown.items():
            if not shares_memory and not same_tensor(observation.taps[name], tensor.cpu()):
                observation.violations.append((name, f"{name} was changed in place after a hook had seen it"))
            if fired[name] > 1:
                observation.violations.append((name, f"{name} fired {fired[name]} times in one forward"))


@contextlib.contextmanager
def watch_gradients(points: Mapping[str, HookPoint], observation: Observation) -> Iterator[None]:
    """Record the gradients that TransformerLens's backward hooks receive, as `grad.` and the names of their taps.

    Args:
        points: the hooks to listen to, by tap.
    """

    def listener(tap: str) -> Callable[..., None]:
        def listen(gradient: torch.Tensor | None, hook: HookPoint) -> None:  # noqa: ARG001  passed by name
            if tap in observation.taps:
                observation.violations.append((tap, f"a backward hook fires twice for {tap} in one backward pass"))
            if gradient is not None:  # the tensor that the hooks returned has none
                observation.record(tap, gradient)

        return listen

    handles = [(point, point.add_hook(listener(f"grad.{tap}"), dir="bwd")) for tap, point in points.items()]
    try:
        yield
    finally:
        for point, handle in handles:
            handle.hook.remove()
            if handle in point.bwd_hooks:
                point.bwd_hooks.remove(handle)


def swallows(point: HookPoint, call: Callable[[], object]) -> bool:
    """Whether `call` returns although a hook at `point` raises in it."""

    class HookError(RuntimeError, ValueError, TypeError):  # what a candidate may catch
        pass

    def refuse(tensor: torch.Tensor, hook: HookPoint) -> None:  # noqa: ARG001  passed by name
        raise HookError

    handle = point.add_hook(refuse)
    try:
        call()
    except HookError:
        return False
    finally:
        _detach(point, handle)
    return True


def ignores_other_dtype(
    point: HookPoint, patch: Callable[[torch.Tensor], torch.Tensor], call: Callable[[], Any]
) -> bool:
    """Whether `call` returns the same for two different tensors that a hook at `point` returns in another dtype.

    It may refuse them, or cast them. Hugging Face's arithmetic refuses them where an operation takes one dtype alone.
    Where two tensors in the dtype of the tap change nothing either (q of one token), nothing is ignored.
    """

    def has_effect(dtype_of: Callable[[torch.Tensor], torch.dtype]) -> bool:
        outputs: list[torch.Tensor] = []
        for factor in (1, -1):

            def replace(tensor: torch.Tensor, hook: HookPoint, factor: int = factor) -> torch.Tensor:  # noqa: ARG001
                drawn = patch(tensor)
                return factor * drawn.to(dtype_of(drawn))

            handle = point.add_hook(replace)
            try:
                returned = call()
            except Exception as error:  # a refusal
                if is_ours(error):
                    raise
                return True
            finally:
                _detach(point, handle)
            output = returned[0] if isinstance(returned, tuple) else returned
            if not isinstance(output, torch.Tensor):
                return True
            outputs.append(output.cpu())
        return not same_tensor(*outputs)

    def other(drawn: torch.Tensor) -> torch.dtype:
        return torch.float32 if drawn.dtype == torch.float64 else torch.float64

    return not has_effect(other) and has_effect(lambda drawn: drawn.dtype)


def _detach(point: HookPoint, handle: LensHandle) -> bool:
    """Remove a hook, and return whether it was still there."""
    handle.hook.remove()
    is_there = handle in point.fwd_hooks
    if is_there:
        point.fwd_hooks.remove(handle)
    return is_there


def hook_points(node: nn.Module, prefix: str = "") -> Iterator[tuple[str, HookPoint]]:
    """The hooks of a component and of its subcomponents by path, except those of the wrapped module."""
    for name, child in node.named_children():
        if isinstance(child, HookPoint):
            yield prefix + name, child
        elif name != "_original_component":
            yield from hook_points(child, f"{prefix}{name}.")


# --- both sides -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watch_io(module: nn.Module, record: RecordTap, into: str | None, out: str | None) -> Iterator[None]:
    """Record the first input of a module as `into` and its first output as `out`; None records nothing."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if into is not None:
            record(into, args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        if out is not None:
            record(out, output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def record_returned(returned: Any, observation: Observation) -> Taps:
    """Record what a module returned: its first part and, for attention and blocks, the pattern. Return them by tap."""
    parts = returned if isinstance(returned, tuple) else (returned,)
    observation.returned = f"a tuple of {len(parts)}" if isinstance(returned, tuple) else "a tensor"
    named = zip(("returned", "returned_pattern"), parts, strict=False)
    tensors = {name: part for name, part in named if isinstance(part, torch.Tensor)}
    for name, part in tensors.items():
        observation.record(name, part)
    return tensors


def record_cache(cache: Any, layer: int | None, prefix: str, record: RecordTap) -> None:
    """Record the keys and values that a cache has for a layer, as `cache_keys` and `cache_values` under `prefix`."""
    if cache is not None and layer is not None and len(cache.layers) > layer and cache.layers[layer].is_initialized:
        for name in ("keys", "values"):
            tensor = getattr(cache.layers[layer], name)
            if isinstance(tensor, torch.Tensor):  # a candidate may put anything there
                record(f"{prefix}cache_{name}", tensor)
