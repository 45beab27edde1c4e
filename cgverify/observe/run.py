"""Run a component on one side and observe it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from cgverify.observe import gradients
from cgverify.observe.components import HOOK_ALIASES, Component
from cgverify.observe.conditions import PLAIN, Conditions, Cotangent, under
from cgverify.observe.generations import installed
from cgverify.observe.taps import (
    Observation,
    Taps,
    hook_points,
    observe,
    record_cache,
    record_returned,
    watch_hooks,
)
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.shortcuts import NO_SHORTCUTS, Shortcuts


def reference_parameters(model: Any, shortcuts: Shortcuts = NO_SHORTCUTS) -> Parameters:
    """Return the weights of a one-block `CodeGenForCausalLM`, with the shortcuts that its products may take.

    Raises:
        CgverifyError: Hugging Face's CodeGen is of an unknown generation.
    """
    return Parameters(model, installed().sin_cos_table, shortcuts)


def run_candidate(
    component: Component,
    bridge: Any,
    inputs: dict[str, Any],
    cache: Any,
    layer: int | None,
    conditions: Conditions = PLAIN,
) -> Observation:
    """Run the bridge's component on inputs and observe it. Note as violations what further forwards reveal.

    A second forward has no hooks except the one that patches, and must give the same tensors. After a third one on
    other inputs, the tensors of the first must be unchanged. Components inside attention or MLP get these checks as a
    part of their parent.
    """
    node = bridge.get_submodule(component.bridge_path)
    device = _device(inputs)
    points = dict(hook_points(node))
    shared = installed().shared_modules(bridge)
    patches = {} if conditions.patch is None else {component.hook_path(conditions.patch.tap): conditions.patch}

    def forward(
        inputs: dict[str, Any], cache: Any, points: Mapping[str, HookPoint], observation: Observation
    ) -> tuple[Taps, Taps]:
        """The tensors that hooks showed, by path, and those that the component returned."""
        with under(conditions, node, device, bridge.cfg, shared), watch_hooks(points, observation, patches) as shown:
            try:
                if conditions.cotangent is None:
                    returned = installed().call(bridge, node, component.kind, inputs, cache)
                else:
                    weights = gradients.candidate_weights(bridge.blocks[0], component.kind)
                    returned = _call_and_differentiate(
                        component, bridge, node, inputs, weights, bridge.cfg.n_heads, conditions.cotangent, observation
                    )
                return shown, record_returned(returned, observation)
            finally:  # a candidate may fail on what it put into the cache
                record_cache(cache, layer, component.attention_prefix, observation.record)

    def run(observation: Observation) -> None:
        whole = not component.is_part
        spare = copy.deepcopy((inputs, cache)) if whole else None
        shown, returned = forward(inputs, cache, points, observation)
        if conditions.cotangent is not None:
            required = {component.hook_path(stage.tap) for stage in component.stages(False) if stage.required}
            observation.violations += [
                (name, f"{name} is shown cut off from autograd: no gradient arrives there")
                for name, tensor in shown.items()
                if name in required and not tensor.requires_grad
            ]
        if spare is None:
            return
        unheard = Observation()
        forward(*spare, {name: point for name, point in points.items() if name in patches}, unheard)
        observation.violations += unheard.differences_from(observation)
        if conditions == PLAIN and cache is None:
            others = {name: value.flip(1) for name, value in inputs.items()}
            installed().call(bridge, node, component.kind, others, None)
            observation.violations += observation.overwritten({**shown, **returned})

    observation = observe(run, inputs)
    observation.violations += [
        (alias, f"{alias} is not the hook {path} that it must be another name of")
        for alias, path in HOOK_ALIASES.get(component.kind, {}).items()
        if getattr(node, alias, None) is not node.get_submodule(path)
    ]
    component.name_taps(observation)
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
    plain, shared = conditions.of_reference, installed().shared_modules(model)

    def run(observation: Observation) -> None:
        if component.projection is not None:
            with under(plain, module, _device(inputs), shared=shared):
                _run_projection(component.projection, model, module, inputs["hidden_states"], observation)
            return
        with under(plain, module, _device(inputs), shared=shared), component.reference_taps(module, observation.record):
            if plain.cotangent is None:
                returned = installed().call(model, module, component.kind, inputs, cache)
            else:
                block: Any = model.get_submodule("transformer.h.0")
                weights = gradients.reference_weights(block, component.kind)
                returned = _call_and_differentiate(
                    component,
                    model,
                    module,
                    inputs,
                    weights,
                    block.attn.num_attention_heads,
                    plain.cotangent,
                    observation,
                )
        record_returned(returned, observation)
        record_cache(cache, layer, component.attention_prefix, observation.record)

    return observe(run, inputs)


def _device(inputs: Mapping[str, torch.Tensor]) -> torch.device:
    return next(value.device for value in inputs.values())


def _call_and_differentiate(
    component: Component,
    root: nn.Module,
    node: nn.Module,
    inputs: dict[str, Any],
    weights: gradients.Weights,
    n_heads: int,
    cotangent: Cotangent,
    observation: Observation,
) -> Any:
    """Call, and record the gradients of sum(output · cotangent) in the hidden states and the weights."""
    leaf = inputs["hidden_states"].detach().clone().requires_grad_()
    with gradients.recorded(weights):
        returned = installed().call(root, node, component.kind, inputs | {"hidden_states": leaf}, None)
        observation.forward_done = True
        output = returned[0] if isinstance(returned, tuple) else returned
        for name, tap in gradients.taps(output, cotangent(output), leaf, weights, n_heads).items():
            observation.record(name, tap)
    return returned


def _run_projection(
    projection: str, model: nn.Module, attention: nn.Module, hidden: torch.Tensor, observation: Observation
) -> None:
    """Run the whole attention for a tensor that comes before mask and positions: without a mask, at positions 0."""
    observation.returned = "a tensor"

    def record(name: str, tensor: torch.Tensor) -> None:
        if name == "hook_in":
            observation.record("hook_in", tensor)
        elif name == projection:
            observation.record("hook_out", tensor)
            observation.record("returned", tensor.flatten(-2))

    positions = torch.zeros(1, hidden.shape[1], dtype=torch.long, device=hidden.device)
    with installed().attention_taps(attention, record):
        installed().call(model, attention, "attn", {"hidden_states": hidden, "position_ids": positions}, None)
