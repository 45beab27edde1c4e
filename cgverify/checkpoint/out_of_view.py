"""Blocks of a checkpoint that are not in the window: shapes without memory, which may be changed and not computed with.

A candidate that is given a whole model finds every block in it. An operation on weights out of view alone has a result
that is out of view too, so that a block may be scaled or replaced. An operation with a real tensor raises: some kernels
of torch would read memory at random there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from cgverify.bridge.codegen_format import skeleton
from cgverify.common.errors import WeightsError

SENTENCE = (
    "Weights that are not in view were computed with: one block, or one of embed, ln_final and unembed, is verified "
    "at a time, and all others are without memory meanwhile. With --prompt, the case model boots the bridge with all "
    "weights at once."
)


class WeightOutOfView(nn.Parameter):
    """A weight on the meta device, that cannot be mixed with real tensors."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if any(isinstance(each, torch.Tensor) and not each.is_meta for each in tree_leaves((args, kwargs))):
                if not args[0].is_meta or not _writes(func.__name__):
                    raise WeightsError(SENTENCE)
                if func.__name__ == "__set__":  # torch refuses to set `data` to a tensor on another device
                    return None
            return tree_map(_out_of_view, func(*args, **kwargs))


def _writes(name: str) -> bool:
    return name.startswith(("__i", "__set")) or (name.endswith("_") and not name.endswith("__"))


def _out_of_view(value: Any) -> Any:
    if type(value) in (torch.Tensor, nn.Parameter) and value.is_meta:
        value.__class__ = WeightOutOfView
    return value


def has_memory(module: nn.Module) -> bool:
    """Return whether the weights of a module have memory, and not only shapes."""
    return not any(weight.is_meta for weight in module.parameters())


def add_blocks_out_of_view(model: Any) -> None:
    """Give a model of the window as many blocks as its checkpoint has.

    Those that are added, and all other weights without memory, cannot be computed with.
    """
    depth = model.config.n_layer
    if len(model.transformer.h) < depth:
        in_view = [block for block in model.transformer.h if has_memory(block)]
        model.transformer.h = skeleton(model.config, depth).to(model.dtype).eval().transformer.h
        for block in in_view:
            model.transformer.h[block.attn.layer_idx] = block
        for weight in model.parameters():
            _out_of_view(weight)
