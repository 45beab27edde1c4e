"""Check that a model is what Hugging Face's class builds from the model's config, module by module.

Nothing is listed here: the class itself builds a model without memory, and both are compared. A module may have another
class, a hook of torch, a replaced method, or another setting (an epsilon, a rate of dropout, a scale). Weights are not
compared, since a checkpoint may have any, except in their shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import CodeGenForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cgverify.bridge.codegen_format import skeleton

HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
"""The attributes of a module that contain hooks of torch which can change what it computes."""
HARMLESS = "transformers.utils.output_capturing"
"""The module whose forward hooks collect hidden states and patterns, and change nothing."""
UNUSED = ("training", "name_or_path", "loss_type", "gradient_checkpointing", "vocab_size")
"""Settings that change no value that a module computes in one mode."""


def departures(model: CodeGenForCausalLM) -> Iterator[str]:
    """Yield what of a model its class would not have built from its config, each as a clause: `lm_head has …`.

    Components of a bridge are left out with all that they wrap, since the verification runs them. Of a bridge's model
    that leaves the modules around them, which it does not run.
    """
    for attribute, hooks in vars(torch_module).items():
        if attribute.removeprefix("_global") in HOOKS and hooks:
            yield f"torch has a global {HOOKS[attribute.removeprefix('_global')]} ({_names(hooks)})"
    implementation = model.config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get(implementation)
    if function is not None and not _origin(function).startswith("transformers."):
        yield f"the model itself has the attention {implementation} ({_name(function)}), which is not transformers' own"
    yield from _departures(model, skeleton(model.config, model.config.n_layer), "", model.config)


def _departures(module: nn.Module, built: nn.Module, path: str, config: Any) -> Iterator[str]:
    where = path or "the model itself"
    for attribute, name in HOOKS.items():
        hooks = {key: hook for key, hook in vars(module)[attribute].items() if _origin(hook) != HARMLESS}
        if hooks:
            yield f"{where} has a torch {name} ({_names(hooks)})"
    if type(module) is not type(built):
        found, wanted_class = (
            each.__name__ if type(module).__name__ != type(built).__name__ else f"{each.__module__}.{each.__qualname__}"
            for each in (type(module), type(built))
        )
        yield f"{where} is a {found} instead of a {wanted_class}"
        return
    if getattr(module, "config", config) is not config:
        yield f"{where} has another config than the model"
    yield from _replaced_methods(module, where)
    yield from _other_settings(module, built, where)
    for kind in ("_parameters", "_buffers"):
        yield from _other_tensors(vars(module)[kind], vars(built)[kind], where)
    children, wanted = module._modules, built._modules
    yield from _extra_and_missing(children, wanted, where)
    for name, other in wanted.items():
        child = children.get(name)
        if child is not None and other is not None and not isinstance(child, GeneralizedComponent):
            yield from _departures(child, other, f"{path}.{name}".removeprefix("."), config)


def _replaced_methods(module: nn.Module, where: str) -> Iterator[str]:
    for name, value in vars(module).items():
        if callable(value) and callable(getattr(type(module), name, None)):
            yield f"{where} has another method {name} ({_name(value)})"
    if module._compiled_call_impl is not None:
        yield f"{where} is compiled"


def _other_settings(module: nn.Module, built: nn.Module, where: str) -> Iterator[str]:
    for name, value in vars(built).items():
        if name.startswith("_") or name in UNUSED or not isinstance(value, int | float | str | tuple | None):
            continue
        found = getattr(module, name, None)
        if isinstance(found, Tensor) or found != value:
            yield f"{where} has {name} {found} instead of {value}"


def _other_tensors(tensors: dict[str, Any], wanted: dict[str, Any], where: str) -> Iterator[str]:
    yield from _extra_and_missing(tensors, wanted, where)
    for name, other in wanted.items():
        if name not in tensors:
            continue
        tensor = tensors[name]
        if (tensor is None) != (other is None):
            yield f"{where} has {'no' if tensor is None else 'a'} {name}"
        elif tensor is None:
            continue
        elif type(tensor) is not type(other):
            yield f"{where} has the {name} in a {type(tensor).__name__} instead of a {type(other).__name__}"
        elif tensor.shape != other.shape:
            yield f"{where} has {name} of shape {list(tensor.shape)} instead of {list(other.shape)}"
        elif tensor.is_meta:
            yield f"{where} has a {name} without memory"
        elif tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            yield f"{where} has a torch hook on the gradient of its {name}"


def _extra_and_missing(found: dict[str, Any], wanted: dict[str, Any], where: str) -> Iterator[str]:
    yield from (f"{where} has an additional {name}" for name in found if name not in wanted)
    yield from (f"{where} lacks {name}" for name in wanted if name not in found)


def _origin(hook: object) -> str:
    return str(getattr(hook, "__module__", ""))


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _names(hooks: dict[Any, Any]) -> str:
    return ", ".join(_name(hook) for hook in hooks.values())
