"""Observe one side: run a component and keep, by name and in order, the tensors on the way.

A tap has the same name, shape and meaning on both sides: that of TransformerLens's hook. On the candidate it is what
a hook function receives; on the reference it is the tensor that Hugging Face really computed, caught by module hooks
and, for scores, as the input of its own softmax. Each is cloned at the moment it is seen.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformer_lens.hook_points import HookPoint

from cgverify.observe.bits import same_tensor

Taps = dict[str, torch.Tensor]


@dataclass
class Observation:
    """What one forward of one side showed."""

    taps: Taps = field(default_factory=dict)
    replaced: Taps = field(default_factory=dict)
    """What hooks were shown that returned another tensor, by their paths."""
    returned: str = ""
    """The form of what was returned: `a tensor`, `a tuple of 2`."""
    raised: BaseException | None = None
    over: bool = False
    """Whether the forward has returned: what fires afterwards belongs to autograd, which may compute a part again."""
    violations: list[tuple[str, str]] = field(default_factory=list)
    """What is wrong whatever the tensors are: the tap or input concerned, and a sentence."""
    silent_hooks: list[str] = field(default_factory=list)

    def see(self, name: str, tensor: torch.Tensor) -> None:
        self.taps[name] = tensor.detach().clone()

    def differences_from(self, all_heard: Observation) -> list[tuple[str, str]]:
        """What came out otherwise here, where nobody listened but hooks that patch, than where every hook was heard."""
        listeners = "no other hook" if self.replaced else "no hook"
        return [
            (name, f"{name} is another tensor when {listeners} is attached")
            for now, then in ((self.taps, all_heard.taps), (self.replaced, all_heard.replaced))
            for name, tap in now.items()
            if name not in then or not same_tensor(tap, then[name])
        ]

    def overwritten(self, shown: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
        """What was shown, of which another forward has made something else."""
        return [
            (name, f"{name} was overwritten by a later forward")
            for name, tensor in shown.items()
            if not same_tensor(self.taps[name], tensor)
        ]


def observe(run: Callable[[Observation], Any], inputs: Mapping[str, Any]) -> Observation:
    """Call `run`, which shows its taps to the observation; note what it raised, and what it changed that is not its."""
    observation = Observation()
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    numerics = _numerics()
    try:
        with torch.no_grad():
            run(observation)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a candidate does is a finding, not our failure
        observation.raised = error
    for name, value in before.items():
        if not same_tensor(value, inputs[name]):
            observation.violations.append((name, f"the candidate changed its input {name} in place"))
    if _numerics() != numerics:
        observation.violations.append(
            ("torch", f"the candidate changed torch's settings from {numerics} to {_numerics()}")
        )
        _restore(numerics)
    return observation


def _numerics() -> tuple[torch.dtype, str, int]:
    """Global settings that change what both sides compute."""
    return torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads()


def _restore(numerics: tuple[torch.dtype, str, int]) -> None:
    dtype, precision, threads = numerics
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


# --- the candidate: TransformerLens's hooks ---------------------------------------------------------------------------


Patches = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]
"""By a hook's path: what makes another tensor of the one that it is shown."""


@contextlib.contextmanager
def hooks_of(
    node: nn.Module, observation: Observation, patches: Patches, alone: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Show every hook of a bridge component, under its path in the component: `hook_pattern`, `q.hook_out`, …

    Args:
        patches: what they make is returned by the hook, and stands for the tap from there on.
        alone: whether nobody listens but the hooks that are patched.

    Yields:
        the tensors themselves that were shown so far, by path.
    """
    shown: dict[str, torch.Tensor] = {}
    fired: Counter[str] = Counter()
    points = {name: point for name, point in hook_points(node) if not alone or name in patches}

    def watch(name: str) -> Callable[..., torch.Tensor | None]:
        def see(tensor: torch.Tensor, hook: HookPoint) -> torch.Tensor | None:
            patch = patches.get(name)
            stands = tensor
            if observation.over:
                return None
            if patch is not None:
                observation.replaced[name] = tensor.detach().clone()
                stands = patch(tensor)
            observation.see(name, stands)
            shown[name] = stands
            fired[name] += 1
            return None if patch is None else stands

        return see

    handles = [(point, point.add_hook(watch(name))) for name, point in points.items()]
    try:
        yield shown
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
        observation.silent_hooks = [name for name in points if not fired[name]]
        for name, tensor in shown.items():
            if not same_tensor(observation.taps[name], tensor):
                observation.violations.append((name, f"{name} was changed in place after a hook had seen it"))
            if fired[name] > 1:
                observation.violations.append((name, f"{name} fired {fired[name]} times in one forward"))


def hook_points(node: nn.Module, prefix: str = "") -> Iterator[tuple[str, HookPoint]]:
    """The hooks of a component and of its subcomponents, without those behind the wrapped module's own names."""
    for name, child in node.named_children():
        if isinstance(child, HookPoint):
            yield prefix + name, child
        elif name != "_original_component":
            yield from hook_points(child, f"{prefix}{name}.")


# --- the reference: Hugging Face's own tensors ------------------------------------------------------------------------


@contextlib.contextmanager
def watch_io(module: nn.Module, see: Callable[[str, torch.Tensor], None], into: str, out: str) -> Iterator[None]:
    """Show the first input of a module as `into` and its first output as `out`; an empty name shows nothing."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if into:
            see(into, args[0] if args else kwargs["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        if out:
            see(out, output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attention_taps(attention: Any, see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Show what a `CodeGenAttention` computes, under the names and in the shapes of the bridge's hooks.

    `qkv.hook_out` is the fused product; q, k and v what `_split_heads` returns; rotated q and k what `_attn` receives
    (with a cache, its last keys, already cast); scores the input of its softmax; the pattern what it returns; z what
    `out_proj` receives.
    """
    split_heads, attn = attention._split_heads, attention._attn
    projections: Iterator[str] = iter(())

    def watched_split(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal projections
        heads: torch.Tensor = split_heads(*args, **kwargs)
        name = next(projections, None)
        if name is None:
            projections = iter(("hook_k", "hook_v"))
            name = "hook_q"
        see(name, heads)
        return heads

    def watched_attn(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        see("hook_rot_q", query.transpose(1, 2))
        see("hook_rot_k", key[:, :, -query.shape[2] :].transpose(1, 2))
        with _SoftmaxInput(lambda scores: see("hook_attn_scores", scores)):
            output = attn(query, key, *args, **kwargs)
        see("hook_pattern", output[1])
        return output

    def see_z(name: str, z: torch.Tensor) -> None:
        see(name, z.unflatten(-1, (attention.num_attention_heads, -1)))

    def see_ends(name: str, tensor: torch.Tensor) -> None:
        """What comes in is what the three projections share; what goes out has one more name."""
        shared = ("hook_in", "qkv.hook_in", "q.hook_in", "k.hook_in", "v.hook_in")
        for each in shared if name == "hook_in" else ("hook_out", "hook_hidden_states"):
            see(each, tensor)

    attention._split_heads, attention._attn = watched_split, watched_attn
    try:
        with (
            watch_io(attention, see_ends, "hook_in", "hook_out"),
            watch_io(attention.qkv_proj, see, "", "qkv.hook_out"),
            watch_io(attention.out_proj, see_z, "hook_z", ""),
            watch_io(attention.out_proj, see, "", "o.hook_out"),
        ):
            yield
    finally:
        del attention._split_heads, attention._attn


class _SoftmaxInput(TorchDispatchMode):
    def __init__(self, see: Callable[[torch.Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._softmax.default:
            self.see(args[0])
        return func(*args, **(kwargs or {}))
