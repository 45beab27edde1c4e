"""TransformerLens's bridges of the modules around attention, with a short way through if no hook is attached.

For each call TransformerLens asks accelerate whether weights are offloaded, calls every hook point and inspects
signatures. With a single token that takes as long as the arithmetic of a small model. These classes go straight to the
wrapped module if none of that can have an effect, and otherwise do what TransformerLens does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components import (
    EmbeddingBridge,
    LinearBridge,
    MLPBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers.models.codegen.modeling_codegen import CodeGenMLP

from cgverify.bridge.fast_path import call_hook_point, has_hooks, has_own_forward, runs_only_forward
from cgverify.bridge.huge_pages import apply_linear

_FOUR_STEPS = CodeGenMLP.forward
"""`fc_in`, `act`, `fc_out`, `dropout`."""


class DirectCall(GeneralizedComponent):  # type: ignore[misc]
    """Call a component as a module. Accelerate is asked for offloaded weights only if the module has its hooks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wrapped = self.__dict__["_modules"].get("_original_component")
        if wrapped is None or "_hf_hook" in wrapped.__dict__:
            return super().__call__(*args, **kwargs)
        return nn.Module.__call__(self, *args, **kwargs)

    def _is_quiet(self) -> bool:
        """Return whether neither `hook_in` nor `hook_out` has a hook."""
        own = self.__dict__["_modules"]
        return not (has_hooks(own["hook_in"]) or has_hooks(own["hook_out"]))


class FastLinearBridge(DirectCall, LinearBridge):  # type: ignore[misc]
    """The bridge of a Linear of the MLP."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._suppress_next_hook_in or not self._is_quiet():
            return super().forward(input, *args, **kwargs)
        self.__dict__["_fired_hook_out"] = True  # an MLP's bridge reads it
        return self.__dict__["_modules"]["_original_component"](input, *args, **kwargs)


class FastMLPBridge(DirectCall, MLPBridge):  # type: ignore[misc]
    """The bridge of an MLP. TransformerLens calls `in.hook_in` and `out.hook_out` from here in some situations."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__["_modules"]
        if len(args) == 1 and not kwargs and (steps := self._steps()) is not None:
            tensor = args[0]
            for step in steps:
                tensor = step.forward(tensor)
            return tensor
        if (
            not args
            or not self._is_quiet()
            or has_hooks(own["in"]._modules["hook_in"])
            or has_hooks(own["out"]._modules["hook_out"])
        ):
            return super().forward(*args, **kwargs)
        return own["_original_component"](*args, **kwargs)

    def _steps(self) -> tuple[Any, ...] | None:
        """Return the modules whose forwards, one after another, are the MLP's; None if anything else would run."""
        own = self.__dict__["_modules"]
        wrapped, first, last = own["_original_component"], own["in"], own["out"]
        parts = wrapped._modules
        if (
            type(wrapped).forward is not _FOUR_STEPS
            or not type(first) is type(last) is FastLinearBridge
            or parts["fc_in"] is not first
            or parts["fc_out"] is not last
        ):
            return None
        first_parts, last_parts, act, dropout = first._modules, last._modules, parts["act"], parts["dropout"]
        called = wrapped, first, *first_parts.values(), act, last, *last_parts.values(), dropout
        if not runs_only_forward(own["hook_in"], *called, own["hook_out"]):
            return None
        return first_parts["_original_component"], act, last_parts["_original_component"], dropout


class FastEmbeddingBridge(DirectCall, EmbeddingBridge):  # type: ignore[misc]
    """The bridge of the token embedding."""

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> Any:
        wrapped = self.__dict__["_modules"]["_original_component"]
        if kwargs or type(wrapped) is not nn.Embedding or has_own_forward(wrapped) or not self._is_quiet():
            return super().forward(input_ids, position_ids, **kwargs)
        return wrapped(input_ids)


class FastUnembeddingBridge(DirectCall, UnembeddingBridge):  # type: ignore[misc]
    """The bridge of the unembedding, with logits in huge pages."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if kwargs:
            return super().forward(hidden_states, **kwargs)
        hidden_states = call_hook_point(self, "hook_in", hidden_states)
        logits = apply_linear(self.__dict__["_modules"]["_original_component"], hidden_states)
        return call_hook_point(self, "hook_out", logits)
