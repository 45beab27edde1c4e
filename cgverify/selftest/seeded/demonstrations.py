"""What a user does with a bridge when a hidden fault shows: calls of one bridge over codegen-nano, in float32.

Each function returns a demonstration, which takes a bridge and returns tensors, or what was raised. They call the first
block. Inputs are drawn from a seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from cgverify.observe.inputs import attention_inputs
from cgverify.observe.run import call_component
from cgverify.selftest.seeded.seeding import temporarily

Demonstration = Callable[[Any], Any]
Edit = Callable[[Any], object]
"""Does something with a bridge between two calls."""
WIDTH, VOCABULARY = 192, 256
"""Of codegen-nano."""
PATHS = {"attn": "blocks.0.attn", "block": "blocks.0", "ln1": "blocks.0.ln1", "mlp": "blocks.0.mlp"}
"""The components that are not at the top level of a bridge."""


def component(bridge: Any, kind: str) -> Any:
    """Return a component of the first block, or one around the blocks."""
    return bridge.get_submodule(PATHS.get(kind, kind))


def inputs(batch: int = 2, tokens: int = 8, past: int = 0, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    """Return inputs of attention or a block for the tokens after `past` others, under a causal mask."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        given = attention_inputs(WIDTH)(batch, past + tokens)
    given["hidden_states"] = given["hidden_states"][:, past:] * scale
    given["position_ids"] = given["position_ids"][:, past:]
    given["attention_mask"] = given["attention_mask"][:, :, past:].clone()
    return given


def states(batch: int = 2, tokens: int = 8, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    """Return inputs of a norm, an MLP or the unembedding."""
    return {"hidden_states": inputs(batch, tokens, seed=seed, scale=scale)["hidden_states"]}


def call(bridge: Any, kind: str, given: dict[str, Any], cache: Any = None) -> Any:
    """Call a component as the model calls it. A missing mask is left out, so that the bridge makes its own."""
    return call_component(bridge, component(bridge, kind), kind, given, cache)


def attends(
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: given, kind: str = "attn", **shape: Any
) -> Demonstration:
    """Call attention once, on inputs of a shape that are changed by a function."""
    return lambda bridge: call(bridge, kind, change(inputs(**shape)))


def computes(kind: str, given: Callable[[], dict[str, Any]]) -> Demonstration:
    """Call a component that takes one tensor."""
    return lambda bridge: call(bridge, kind, given())


def looks_up(*ids: int, batch: int = 1, start: int = 0) -> Demonstration:
    """Call the embedding for token ids, or for those from `start` on if none are given."""
    return lambda bridge: call(bridge, "embed", {"input_ids": torch.tensor(ids).view(batch, -1) + start})


def decodes(*lengths: int, batch: int = 2, cache: Callable[[], Any] = DynamicCache, seed: int = 0) -> Demonstration:
    """Call attention for one piece of a sequence after another through a cache, and return what the last one did."""

    def demonstrate(bridge: Any) -> Any:
        own, past, returned = cache(), 0, None
        for length in lengths:
            returned = call(bridge, "attn", inputs(batch, length, past, seed + past), own)
            past += length
        return returned

    return demonstrate


def in_turn(*demonstrations: Demonstration) -> Demonstration:
    """Call one bridge several times, and return what the last call did."""

    def demonstrate(bridge: Any) -> Any:
        return [each(bridge) for each in demonstrations][-1]

    return demonstrate


def raising(demonstration: Demonstration) -> Demonstration:
    """Return what was raised instead of raising it."""

    def demonstrate(bridge: Any) -> Any:
        try:
            return demonstration(bridge)
        except Exception as error:
            return f"raised {type(error).__name__}"

    return demonstrate


def edits_weight(path: str) -> Demonstration:
    """Double a weight in place."""

    def demonstrate(bridge: Any) -> None:
        with torch.no_grad():
            bridge.get_submodule(path).original_component.weight.mul_(2)

    return demonstrate


# --- hooks ------------------------------------------------------------------------------------------------------------

Hook = Callable[[Tensor], Tensor | None]


@contextlib.contextmanager
def hooks(bridge: Any, **functions: Hook) -> Iterator[None]:
    """Attach functions to hooks of the first block's attention, by name, `o.hook_in` as `o_hook_in`."""
    with bridge.hooks(fwd_hooks=[_named(name, function) for name, function in functions.items()]):
        yield


def _named(name: str, function: Hook) -> tuple[str, Callable[..., Tensor | None]]:
    def called(tensor: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001  TransformerLens passes it by name
        return function(tensor)

    return f"blocks.0.attn.{name.replace('_hook_', '.hook_')}", called


def patched(demonstration: Demonstration, **functions: Hook) -> Demonstration:
    """Do it while hooks return other tensors."""

    def demonstrate(bridge: Any) -> Any:
        with hooks(bridge, **functions):
            return demonstration(bridge)

    return demonstrate


def reverse(tensor: Tensor) -> Tensor:
    """Return a hook's tensor with its heads or features in reverse order, which is another tensor of equal size."""
    return tensor.flip(1)


def doubled(tensor: Tensor) -> Tensor:
    """Return twice the tensor that a hook was shown."""
    return tensor * 2


def fails(_: Tensor) -> None:
    """Raise, as a hook with a mistake does."""
    raise RuntimeError("this hook raises")


# --- modes ------------------------------------------------------------------------------------------------------------


def training(demonstration: Demonstration, attention: float = 0.1, residual: float = 0.1) -> Demonstration:
    """Do it in training mode from a fixed random state, with a rate of dropout for patterns and one for outputs."""

    def demonstrate(bridge: Any) -> Any:
        set_rates(bridge, attention, residual)
        bridge.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return demonstration(bridge)

    return demonstrate


def set_rates(bridge: Any, attention: float, residual: float) -> None:
    """Set the rates of dropout in the first block."""
    wrapped = component(bridge, "attn").original_component
    if hasattr(wrapped, "attn_dropout"):
        wrapped.attn_dropout.p = attention
    else:
        wrapped.attention_dropout = attention
    for module in component(bridge, "block").modules():
        if isinstance(module, torch.nn.Dropout) and module is not getattr(wrapped, "attn_dropout", None):
            module.p = residual


def flagged(demonstration: Demonstration, *flags: str) -> Demonstration:
    """Do it with flags of the bridge's config turned on."""

    def demonstrate(bridge: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for flag in flags:
                stack.enter_context(temporarily(bridge.cfg, flag, True))
            return demonstration(bridge)

    return demonstrate


def shown(demonstration: Demonstration, *names: str) -> Demonstration:
    """Do it, and return what hooks of the first block's attention were shown."""

    def demonstrate(bridge: Any) -> Any:
        seen: dict[str, Tensor] = {}

        def keep(name: str) -> Hook:
            return lambda tensor: seen.update({name: tensor.detach().clone()})

        with hooks(bridge, **{name: keep(name) for name in names}):
            demonstration(bridge)
        return [seen.get(name, "was not called") for name in names]

    return demonstrate


def differentiated(
    of: Callable[[Any, dict[str, Any]], Tensor], *wanted: Callable[[Any, dict[str, Any]], Tensor], **shape: Any
) -> Demonstration:
    """Return gradients of a result's weighted sum.

    Args:
        of: the result, from the bridge and the inputs of attention, which need gradients.
        wanted: the tensors whose gradients are returned, after the call.
    """

    def demonstrate(bridge: Any) -> Any:
        given = inputs(**shape)
        for name in ("hidden_states", "attention_mask"):
            given[name].requires_grad_()
        with torch.enable_grad():
            result = of(bridge, given)
            weights = torch.linspace(-1, 1, result.numel()).view(result.shape)
            tensors = [each(bridge, given) for each in wanted]
            for tensor in tensors:
                tensor.grad = None
            (result * weights).sum().backward()
        return ["no gradient" if tensor.grad is None else tensor.grad.clone() for tensor in tensors]

    return demonstrate
