"""Turn a point into calls that can be timed, the same for both sides: inputs, a cache, autograd mode and hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, DynamicCache

from cgverify.bench.models import LAYER, WHOLE
from cgverify.bench.records import Point
from cgverify.bench.scenarios import SCENARIOS
from cgverify.observe.components import COMPONENTS
from cgverify.observe.generations import installed
from cgverify.observe.inputs import InputSpec, convert, draw, leave_unchanged, token_ids
from cgverify.observe.taps import hook_points

ONE_HOOK = {"attn": "hook_pattern", "block": "attn.hook_pattern", "model": "blocks.0.attn.hook_pattern"}
"""The hook of the scenario `one-hook`: the attention pattern if a component has one, else `hook_out`."""


Caller = Callable[[Any, torch.Tensor], Any]

MODEL_CALLS: dict[str, tuple[Caller, Caller]] = {
    "cache-all": (
        lambda model, ids: model(ids, output_hidden_states=True, output_attentions=True),
        lambda bridge, ids: bridge.run_with_cache(ids)[0],
    ),
    "cache-one": (
        lambda model, ids: model(ids),
        lambda bridge, ids: bridge.run_with_cache(ids, names_filter="blocks.0.hook_out")[0],
    ),
    "generate": (
        lambda model, ids: model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=SCENARIOS["generate"].generated,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=model.config.vocab_size,  # never generated
        ),
        lambda bridge, ids: bridge.generate(
            ids,
            max_new_tokens=SCENARIOS["generate"].generated,
            do_sample=False,
            stop_at_eos=False,
            verbose=False,
            return_type="tokens",
        ),
    ),
}
"""Scenarios of whole models that are not one forward: what Hugging Face's model runs, and what a bridge runs."""


def autograd_mode(point: Point) -> contextlib.AbstractContextManager[Any]:
    """Return the autograd mode to measure a point in: by default `inference_mode`, the fastest one."""
    modes: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]
    modes = {"no-grad": torch.no_grad, "train": torch.enable_grad}
    return modes.get(point.scenario, torch.inference_mode)()


def inputs_of(point: Point, config: CodeGenConfig) -> dict[str, Any]:
    """Return the seeded inputs of both sides, in the point's dtype and on its device.

    With a cache, positions and mask are those of tokens after the cached ones, and `cached` is a tensor to fill the
    cache with, `[batch, heads, cached, head_dim]`.
    """
    device, dtype = torch.device(point.device), getattr(torch, point.dtype)
    spec = InputSpec(0, point.batch_size, point.seq_len, config.n_positions, dtype, spread=1.0, n_heads=config.n_head)
    whole = point.component == WHOLE
    builder = token_ids(config.vocab_size) if whole else COMPONENTS[point.component].random_inputs(config)
    inputs = convert(draw(builder, spec, leave_unchanged), dtype, device)
    if point.scenario == "decode":
        if not whole:
            inputs["position_ids"] = inputs["position_ids"] + point.cached
            visible = inputs["attention_mask"].new_zeros(point.batch_size, 1, point.seq_len, point.cached)
            inputs["attention_mask"] = torch.cat([visible, inputs["attention_mask"]], -1)
        size = (point.batch_size, config.n_head, point.cached, config.n_embd // config.n_head)
        inputs["cached"] = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    return inputs


def forward_of(
    module: nn.Module, model: nn.Module, point: Point, inputs: dict[str, Any], config: CodeGenConfig
) -> Callable[[], Any]:
    """Return a call of the module that starts from the same state each time and returns what the module returned.

    Args:
        model: the model or bridge whose sin/cos table the module uses. Its rows are looked up before the calls.
    """
    whole, cache = point.component == WHOLE, None
    if point.scenario == "decode":
        cache = DynamicCache()
        for layer in range(config.n_layer if whole else LAYER + 1):
            cache.update(inputs["cached"], inputs["cached"], layer)
    given = {name: value for name, value in inputs.items() if name != "cached"}
    if whole:
        arguments = {**given, "past_key_values": cache, "use_cache": cache is not None}
    else:
        arguments = installed().arguments(model, given, cache)
    name, *rest = arguments
    first, context = arguments[name], {other: arguments[other] for other in rest}
    if point.scenario == "train":
        return lambda: _train_step(module, first, context)
    if point.scenario in MODEL_CALLS:
        theirs, ours = MODEL_CALLS[point.scenario]
        return partial(ours if hasattr(module, "run_with_cache") else theirs, module, first)

    def forward() -> Any:
        returned = module(first, **context)
        if cache is not None:
            cache.crop(-point.seq_len)
        return returned

    return forward


def _train_step(module: nn.Module, first: torch.Tensor, context: dict[str, Any]) -> Any:
    """Run forward and backward, starting without gradients."""
    module.zero_grad(set_to_none=True)
    leaf = first.detach().requires_grad_() if first.is_floating_point() else first
    returned = module(leaf, **context)
    tensors(returned)[0].sum().backward()
    return returned


def tensors(returned: Any) -> list[torch.Tensor]:
    """Return the tensors among what a component or a model returned, in order."""
    if hasattr(returned, "logits"):
        return [returned.logits]
    parts = returned if isinstance(returned, tuple) else (returned,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


@contextlib.contextmanager
def prepared(module: nn.Module, point: Point) -> Iterator[None]:
    """Put a module into the scenario's training mode, attach its hooks, and undo both afterwards."""
    points = dict(hook_points(module))
    hooked: list[Any] = []
    if point.scenario == "one-hook" and points:
        hooked = [points[ONE_HOOK.get(point.component, "hook_out")]]
    elif point.scenario == "all-hooks":
        hooked = list(points.values())
    kept: dict[Any, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        """Keep what a hook sees, as `run_with_cache` does."""
        kept[hook] = tensor

    for hook_point in hooked:
        hook_point.add_hook(keep)
    if point.scenario == "train":
        module.train().requires_grad_()
    try:
        yield
    finally:
        if point.scenario == "train":
            module.zero_grad(set_to_none=True)
            module.eval().requires_grad_(False)
        for hook_point in hooked:
            hook_point.remove_hooks()
