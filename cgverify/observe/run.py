"""Run a component on one side and observe it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint
from transformers import StaticCache

from cgverify.observe.components import HOOK_ALIASES, Component
from cgverify.observe.conditions import PLAIN, Conditions, Copy, Cotangent, Place, apply_conditions
from cgverify.observe.events import CalledComponent, go_through
from cgverify.observe.fault import calls_a_side
from cgverify.observe.generations import installed, leading_arguments
from cgverify.observe.gradients import (
    LEARNED,
    Differentiated,
    call_and_differentiate,
    candidate_weights,
    reference_weights,
)
from cgverify.observe.taps import (
    CONDUCT,
    Observation,
    Taps,
    conduct,
    cpu_copy,
    hook_points,
    ignores_other_dtype,
    observe,
    record_cache,
    record_returned,
    swallows,
    watch_gradients,
    watch_hooks,
)
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.shortcuts import NO_SHORTCUTS, Shortcuts


def reference_parameters(model: Any, shortcuts: Shortcuts = NO_SHORTCUTS, device: str = "cpu") -> Parameters:
    """Return the weights of a one-block `CodeGenForCausalLM` on the CPU, for an oracle.

    Args:
        shortcuts: those that the products of both sides may take.
        device: the type of the device that both sides run on.

    Raises:
        CgverifyError: Hugging Face's CodeGen is of an unknown generation.
    """
    return Parameters(model, installed().sin_cos_table, shortcuts, device)


def set_attention(model: nn.Module, implementation: str) -> None:
    """Let every attention of a `CodeGenForCausalLM` run an implementation: `eager` or `sdpa`."""
    for module in model.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = implementation


@calls_a_side
def call_component(
    root: nn.Module,
    node: nn.Module,
    kind: str,
    inputs: dict[str, Any],
    cache: Any = None,
    conditions: Conditions = PLAIN,
) -> Any:
    """Call a component of a model or bridge as the model, or else as the conditions say. Return what it returns."""
    arguments = installed().arguments(root, inputs, cache)
    if not conditions.use_cache:
        del arguments["use_cache"]
    if conditions.by_position:
        leading = leading_arguments(kind, arguments)
        return node(*leading.values(), **{name: value for name, value in arguments.items() if name not in leading})
    if kind == "attn":  # a block calls its attention with keywords only
        return node(**arguments)
    first, *rest = arguments
    return node(arguments[first], **{name: arguments[name] for name in rest})


def run_candidate(
    component: Component,
    bridge: Any,
    inputs: dict[str, Any],
    cache: Any,
    layer: int | None,
    conditions: Conditions = PLAIN,
    earlier: Observation | None = None,
    *,
    events: Sequence[str] = (),
) -> Observation:
    """Run the bridge's component on inputs and observe it. Add the violations that further forwards show.

    A second forward without hooks, except those that patch, must give the same tensors. Components inside attention or
    MLP get this check as a part of their parent, except of gradients.

    Args:
        earlier: a forward on the same inputs, which must show the same, and whose tensors must be unchanged.
        events: what the component first goes through, see `cgverify.observe.events`.
    """
    node = bridge.get_submodule(component.bridge_path)
    points = dict(hook_points(node))
    patches = {component.hook_path(patch.tap): patch for patch in conditions.patches}
    call = partial(call_component, bridge, node, component.kind, conditions=conditions)

    def differentiated(
        observation: Observation, cotangent: Cotangent, names: Sequence[str], shown: Taps, by_output: bool
    ) -> Differentiated:
        """Call the component and differentiate. Hooks that fire in the backward pass are not recorded."""

        def called(inputs: dict[str, Any]) -> Any:
            returned = call(inputs, None)
            observation.forward_done = True
            return returned

        weights, n_heads = candidate_weights(bridge, component.kind), bridge.cfg.n_heads
        found = call_and_differentiate(called, inputs, names, weights, n_heads, cotangent, shown, by_output)
        observation.violations += found.violations
        return found

    def through_hooks(observation: Observation, cotangent: Cotangent) -> None:
        """Let every hook return a copy of what it receives, and add the gradients that arrive in the copies.

        What is learned may be a mask too.
        """
        required = {stage.tap: stage.required for stage in component.stages(False)}
        used = {path: point for path, point in points.items() if component.tap_name(path) in required}
        listened = {component.tap_name(path): point for path, point in used.items()}
        listened = {tap: point for tap, point in listened.items() if required[tap]}
        copied = Observation()
        names = [name for name in (*component.gradient_inputs, *LEARNED) if name in inputs]
        with (
            apply_conditions(conditions, node, bridge, _device(inputs)),
            watch_hooks(used, copied, dict.fromkeys(used, Copy())) as shown,
            watch_gradients(listened, copied),
        ):
            found = differentiated(copied, cotangent, names, shown, by_output=False)
        gradients = {tap: gradient for tap, gradient in copied.taps.items() if tap.startswith("grad.")}
        gradients |= {f"hooked.{name}": found.gradients[name] for name in component.gradient_inputs}
        gradients |= {f"grad.{name}": found.gradients[name] for name in names if name in LEARNED}
        observation.taps |= gradients
        observation.violations += [one for one in copied.violations if one not in observation.violations]
        observation.violations += [
            (name, f"no gradient arrives at a tensor that a hook at {name} returned") for name in found.unreached
        ]

    def forward(
        inputs: dict[str, Any], cache: Any, points: Mapping[str, HookPoint], observation: Observation
    ) -> tuple[Taps, Taps]:
        """Return the tensors that hooks received, by path, and those that the component returned."""
        with (
            _unseeded(),
            apply_conditions(conditions, node, bridge, _device(inputs)),
            watch_hooks(points, observation, patches) as shown,
        ):
            before = conduct(node, draws=conditions.dropout is not None)
            try:
                if conditions.cotangent is None:
                    returned = call(inputs, cache)
                else:
                    found = differentiated(
                        observation, conditions.cotangent, component.gradient_inputs, shown, by_output=True
                    )
                    returned = found.returned
                    observation.taps |= {f"grad.{name}": gradient for name, gradient in found.gradients.items()}
                    # A hook point with a conversion shows a view that is not used further, in TransformerLens too.
                    observation.violations += [
                        (name, f"no gradient arrives at {name}: the tensor that is shown is not the one that is used")
                        for name in found.unreached
                        if points[name].hook_conversion is None
                    ]
                return shown, record_returned(returned, observation)
            finally:  # a candidate may fail because of what it put into the cache
                record_cache(cache, layer, component.attention_prefix, observation.record)
                after = conduct(node, draws=conditions.dropout is not None)
                observation.violations += [
                    ("torch", f"the candidate changed {what}")
                    for what, old, new in zip(CONDUCT, before, after, strict=True)
                    if old != new
                ]

    def run(observation: Observation) -> None:
        if conditions.derivative is not None:
            assert conditions.cotangent is not None
            place = Place(layer or 0, bridge.cfg.n_heads)
            with apply_conditions(conditions, node, bridge, _device(inputs)):
                derived = conditions.derivative(call, inputs, conditions.cotangent, place)
            observation.taps |= {tap: cpu_copy(tensor) for tap, tensor in derived.items()}
            return
        if events and earlier is not None and "returned" in earlier.live:
            first = {name: before for name, (before, _) in earlier.live.items()}
            fired = {name: point for name, point in points.items() if name in first}
            any_node = partial(call_component, bridge)
            between = CalledComponent(component.kind, bridge, node, fired, inputs, any_node, first)
            observation.violations += go_through(between, events)
        spare = None if component.is_part and conditions.cotangent is None else copy.deepcopy((inputs, cache))
        shown, returned = forward(inputs, cache, points, observation)
        if conditions.cotangent is not None:
            required = {component.hook_path(stage.tap) for stage in component.stages(False) if stage.required}
            observation.violations += [
                (name, f"{name} is shown cut off from autograd: no gradient arrives there")
                for name, tensor in shown.items()
                if name in required and tensor.is_floating_point() and not tensor.requires_grad
            ]
            through_hooks(observation, conditions.cotangent)
        if spare is not None:
            unhooked = Observation()
            forward(*spare, {name: point for name, point in points.items() if name in patches}, unhooked)
            observation.violations += unhooked.differences_from(observation)
            observation.violations += [one for one in unhooked.violations if one not in observation.violations]
            if len(patches) == 1 and cache is None and conditions.for_reference == PLAIN:
                ((name, patch),) = patches.items()
                alone = partial(call, inputs, None)
                with apply_conditions(conditions, node, bridge, _device(inputs)):
                    if name in shown and swallows(points[name], alone):
                        message = f"what a hook raises at {name} does not come out of the forward"
                        observation.violations.append((name, message))
                    if name in shown and not patch.edits and ignores_other_dtype(points[name], patch, alone):
                        message = f"what a hook returns at {name} in another dtype is ignored"
                        observation.violations.append((name, message))
        observation.keep({**shown, **returned})
        if earlier is not None:
            observation.violations += earlier.changes_in(observation)

    observation = observe(run, inputs)
    observation.violations += [
        (alias, f"{alias} is not the hook {path} that it must be another name of")
        for alias, path in HOOK_ALIASES.get(component.kind, {}).items()
        if getattr(node, alias, None) is not points.get(path)
    ]
    component.rename_taps(observation)
    return observation


def run_reference(
    component: Component,
    model: nn.Module,
    inputs: dict[str, Any],
    cache: Any,
    layer: int | None,
    conditions: Conditions = PLAIN,
) -> Observation:
    """Run Hugging Face's module on inputs and observe it. Flags and patches of the conditions do not apply to it."""
    module = model.get_submodule(component.reference_path)
    plain = conditions.for_reference
    call = partial(call_component, model, module, component.kind, conditions=plain)

    config: Any = model.config

    def run(observation: Observation) -> None:
        if plain.derivative is not None:
            assert plain.cotangent is not None
            with apply_conditions(plain, module, model, _device(inputs)):
                derived = plain.derivative(call, inputs, plain.cotangent, Place(layer or 0, config.n_head))
            observation.taps |= {tap: cpu_copy(tensor) for tap, tensor in derived.items()}
            return
        if component.projection is not None:
            with apply_conditions(plain, module, model, _device(inputs)):
                _run_projection(component.projection, model, module, inputs["hidden_states"], observation)
            return
        with (
            apply_conditions(plain, module, model, _device(inputs)),
            component.reference_taps(module, observation.record),
        ):
            if plain.cotangent is None:
                returned = call(inputs, cache)
            else:
                names = [name for name in (*component.gradient_inputs, *LEARNED) if name in inputs]
                weights = reference_weights(model, component.kind)
                found = call_and_differentiate(
                    lambda inputs: call(inputs, None), inputs, names, weights, config.n_head, plain.cotangent, {}, False
                )
                returned = found.returned
                observation.taps |= {f"grad.{name}": gradient for name, gradient in found.gradients.items()}
                observation.taps |= {f"hooked.{name}": found.gradients[name] for name in component.gradient_inputs}
        record_returned(returned, observation)
        record_cache(cache, layer, component.attention_prefix, observation.record)
        if isinstance(cache, StaticCache):  # its last keys, which are recorded as the rotated ones, are free places
            observation.taps.pop(f"{component.attention_prefix}hook_rot_k", None)

    return observe(run, inputs)


@contextlib.contextmanager
def _unseeded() -> Iterator[None]:
    """Draw a number, so that no seed gives torch's random state: not even the caller's own could leave it unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)
        yield


def _device(inputs: Mapping[str, torch.Tensor]) -> torch.device:
    return next(value.device for value in inputs.values())


def _run_projection(
    projection: str, model: nn.Module, attention: nn.Module, hidden: torch.Tensor, observation: Observation
) -> None:
    """Run the whole attention to get a tensor that depends on no mask or position: without a mask, at positions 0."""
    observation.returned = "a tensor"

    def record(name: str, tensor: torch.Tensor) -> None:
        if name == "hook_in":
            observation.record("hook_in", tensor)
        elif name == projection:
            observation.record("hook_out", tensor)
            observation.record("returned", tensor.flatten(-2))

    positions = torch.zeros(1, hidden.shape[1], dtype=torch.long, device=hidden.device)
    with installed().attention_taps(attention, record):
        call_component(model, attention, "attn", {"hidden_states": hidden, "position_ids": positions})
