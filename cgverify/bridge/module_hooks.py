"""Run another computation as a module, so that torch's own hooks on that module fire around it.

The bridge computes some modules without calling them: attention, its fused projection, and layer norms that show their
parts. Libraries such as baukit and nnsight register hooks on these modules all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from torch import nn

from cgverify.bridge.fast_path import has_hooks, has_only_forward_hooks

_replacing = RLock()
"""Held while a forward is replaced: another thread would restore the replacement instead of the forward."""


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Put `forward` in the place of a module's own forward.

    A call of the module then fires all of torch's hooks on it, with the module itself as their first argument. What
    accelerate does around the module's forward it does around `forward`.
    """
    attributes = module.__dict__
    name = "_old_forward" if "_hf_hook" in attributes else "forward"  # accelerate calls the first inside the second
    with _replacing:
        replaced = attributes.get(name)
        attributes[name] = forward
        try:
            yield
        finally:
            if replaced is None:
                del attributes[name]
            else:
                attributes[name] = replaced


def call_as(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return `forward(*args, **kwargs)`, with torch's hooks on `module` around it if it has any."""
    if "_forward_hooks" not in module.__dict__ or not has_hooks(module):  # a mock of a module has no hooks
        return forward(*args, **kwargs)
    if not has_only_forward_hooks(module):
        with replaced_forward(module, forward):
            return module(*args, **kwargs)
    # transformers collects attention patterns with such a hook: without a lock, and so that it can be compiled.
    returned = forward(*args, **kwargs)
    for key, hook in list(module._forward_hooks.items()):
        given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        changed = hook(module, *given, returned)
        returned = returned if changed is None else changed
    return returned
