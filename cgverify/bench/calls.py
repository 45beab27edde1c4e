"""From a point to calls that can be timed: inputs, a cache, autograd, hooks, on either side alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, DynamicCache

from cgverify.bench.records import Point
from cgverify.bench.subjects import LAYER, WHOLE
from cgverify.observe.components import COMPONENTS
from cgverify.observe.inputs import InputSpec, convert, draw, leave_unchanged, token_ids
from cgverify.observe.taps import hook_points

MODES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no-grad": torch.no_grad,
    "train": torch.enable_grad,
}
"""The autograd mode of scenarios; all others run in `inference_mode`, the quickest there is for both sides."""

ONE_HOOK = {"attn": "hook_pattern", "block": "attn.hook_pattern", "model": "blocks.0.attn.hook_pattern"}
"""The hook that looks on: the attention pattern, where a component has one, else `hook_out`."""


def mode(point: Point) -> contextlib.AbstractContextManager[Any]:
    """The autograd mode in which a point is measured."""
    return MODES.get(point.scenario, torch.inference_mode)()


def inputs_of(point: Point, config: CodeGenConfig) -> dict[str, Any]:
    """What both sides are given, seeded, in the point's dtype and on its device.

    With a cache: positions and mask of tokens that follow the cached ones, and `cached`, keys and values at once,
    `[batch, heads, cached, head_dim]`.
    """
    device, dtype = torch.device(point.device), getattr(torch, point.dtype)
    recipe = InputSpec(0, point.batch_size, point.seq_len, config.n_positions, dtype, spread=1.0)
    whole = point.component == WHOLE
    builder = token_ids(config.vocab_size) if whole else COMPONENTS[point.component].random_inputs(config)
    inputs = convert(draw(builder, recipe, leave_unchanged), dtype, device)
    if point.scenario == "decode":
        if not whole:
            inputs["position_ids"] = inputs["position_ids"] + point.cached
            before = inputs["attention_mask"].new_zeros(point.batch_size, 1, point.seq_len, point.cached)
            inputs["attention_mask"] = torch.cat([before, inputs["attention_mask"]], -1)
        size = (point.batch_size, config.n_head, point.cached, config.n_embd // config.n_head)
        generator = torch.Generator().manual_seed(0)
        inputs["cached"] = torch.randn(size, generator=generator).to(device, dtype)
    return inputs


def forward_of(module: nn.Module, point: Point, inputs: dict[str, Any], config: CodeGenConfig) -> Callable[[], Any]:
    """One call from the same state each time; returns what the module returned."""
    first, *rest = (name for name in inputs if name != "cached")
    context: dict[str, Any] = {name: inputs[name] for name in rest}
    if point.scenario == "train":
        return lambda: _step(module, inputs[first], context)
    if point.component == WHOLE:
        context["use_cache"] = False
    if point.scenario != "decode":
        return lambda: module(inputs[first], **context)

    cache = DynamicCache()
    for layer in range(config.n_layer if point.component == WHOLE else LAYER + 1):
        cache.update(inputs["cached"], inputs["cached"], layer)
    context |= {"past_key_values" if point.component == WHOLE else "layer_past": cache, "use_cache": True}

    def decode() -> Any:
        returned = module(inputs[first], **context)
        cache.crop(-point.seq_len)
        return returned

    return decode


def _step(module: nn.Module, first: torch.Tensor, context: dict[str, Any]) -> Any:
    """Forward and backward, from gradients that are none."""
    module.zero_grad(set_to_none=True)
    leaf = first.detach().requires_grad_() if first.is_floating_point() else first
    returned = module(leaf, **context)
    tensors(returned)[0].sum().backward()
    return returned


def tensors(returned: Any) -> list[torch.Tensor]:
    """What a component or a model returned: its tensors, in order."""
    if hasattr(returned, "logits"):
        return [returned.logits]
    parts = returned if isinstance(returned, tuple) else (returned,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


@contextlib.contextmanager
def prepared(module: nn.Module, point: Point) -> Iterator[None]:
    """Training mode and hooks, as the scenario has them; as before afterwards."""
    with contextlib.ExitStack() as stack:
        if point.scenario == "train":
            stack.enter_context(_training(module))
        points = dict(hook_points(module))
        if point.scenario == "one-hook" and points:
            stack.enter_context(_listening([points[ONE_HOOK.get(point.component, "hook_out")]]))
        if point.scenario == "all-hooks":
            stack.enter_context(_listening(list(points.values())))
        yield


@contextlib.contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """Weights that want gradients, in training mode."""
    module.train().requires_grad_()
    try:
        yield
    finally:
        module.zero_grad(set_to_none=True)
        module.eval().requires_grad_(False)


@contextlib.contextmanager
def _listening(points: list[Any]) -> Iterator[None]:
    """Keep what hooks are shown, as `run_with_cache` does."""
    kept: dict[Any, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        kept[hook] = tensor

    for point in points:
        point.add_hook(keep)
    try:
        yield
    finally:
        for point in points:
            point.remove_hooks()
