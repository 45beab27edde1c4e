"""A window of one block that shows one part of a checkpoint at a time.

It makes a `CodeGenForCausalLM` with a single block, whose weights are those of the layer in view. Parts that are not in
view (the embeddings while a block is, and the other way round) stay on the meta device: shapes without memory.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.bridge.codegen_format import skeleton
from cgverify.bridge.qkv_layout import split_weight
from cgverify.checkpoint.sin_cos_table import set_table
from cgverify.checkpoint.source import Source
from cgverify.common.errors import CgverifyError, WeightsError
from cgverify.common.memory import give_back_freed, is_shortage
from cgverify.common.printable import described
from cgverify.common.records import RotaryDim, WeightsView

_ENDS = {"embed": "transformer.wte", "ln_final": "transformer.ln_f", "unembed": "lm_head"}


@dataclass(frozen=True)
class ModelVariant:
    """The form of the weights in a model."""

    dtype: torch.dtype
    device: torch.device
    rotary_dim: RotaryDim

    @property
    def on_cpu(self) -> ModelVariant:
        return replace(self, device=torch.device("cpu"))


class Window:
    """The weights of one view at a time, which are read once and kept in their stored dtype."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._config = source.config
        self._skeletons: dict[RotaryDim, CodeGenForCausalLM] = {}
        self._stored: dict[str, torch.Tensor] = {}
        self.view: WeightsView | None = None

    def show(self, view: WeightsView) -> None:
        """Read the weights of a view, and drop those of the view before.

        Raises:
            WeightsError: a tensor cannot be read, contains NaN or infinity, or does not fit into memory.
        """
        self._stored, self.view = {}, None
        if isinstance(view, str):  # the largest view of a small model, after the layers fragmented the heap
            give_back_freed()
        module = _in_view(self._skeleton(self._config.rotary_dim), view)
        prefix = f"transformer.h.{view}" if isinstance(view, int) else _ENDS[view]
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}

        def read(name: str) -> torch.Tensor:
            tensor = self._source.read(f"{prefix}.{name}", shapes[name])
            _require_finite(tensor, f"{prefix}.{name}")
            return tensor

        # Reading a file or drawing random numbers uses one processor, whatever the number of torch threads.
        with _shortage_reported(view), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            self._stored = dict(zip(shapes, pool.map(read, shapes), strict=True))
        self.view = view

    def spread(self) -> float:
        """Return the factor on standard normal inputs that gives attention scores a standard deviation of 3.

        For x, y standard normal, xᵀAy has variance ‖A‖²; here A = WqᵀWk/√D of a head, and
        ‖WqᵀWk‖² = tr(WqWqᵀ·WkWkᵀ). It is computed from the stored weights, so that every dtype has the same factor, and
        rounded to two digits, so that every number of threads has. It is 1.0 if no block is in view.
        """
        if not isinstance(self.view, int):
            return 1.0
        heads = self._config.n_head
        fused = self._stored["attn.qkv_proj.weight"].to(torch.float32)
        query, key, _ = (weight.unflatten(0, (heads, -1)) for weight in split_weight(fused))
        squares = ((query @ query.mT) * (key @ key.mT)).sum((-1, -2))
        deviation = float((squares.mean() / query.shape[1]).sqrt())
        return float(f"{math.sqrt(3 / deviation):.2g}") if deviation > 0 else 1.0

    def model(self, variant: ModelVariant) -> CodeGenForCausalLM:
        """Return a new model in eval mode, whose weights in view are copies, so that it may be changed.

        As after `from_pretrained(dtype=…)`, weights have the dtype, and the sin/cos table has float32 or wider. Its
        config has the number of layers of the checkpoint.

        Raises:
            WeightsError: it does not fit into memory.
        """
        return self._model(variant, partial(torch.Tensor.to, copy=True))

    def reference(self, variant: ModelVariant) -> CodeGenForCausalLM:
        """Return the same model with the stored weights themselves if they have the dtype. It must not be changed.

        Hugging Face's modules never write to their weights. A third copy of the largest view would be a third of the
        memory that a verification takes.
        """
        return self._model(variant, torch.Tensor.to)

    def _model(self, variant: ModelVariant, converted: Callable[..., torch.Tensor]) -> CodeGenForCausalLM:
        assert self.view is not None, "show a view first"
        with _shortage_reported(self.view):
            model = copy.deepcopy(self._skeleton(variant.rotary_dim)).to(variant.dtype)
            model.config.n_layer = self._config.n_layer
            module = _in_view(model, self.view)
            for name, stored in self._stored.items():
                owner, _, leaf = name.rpartition(".")
                # Cast on the CPU: the device may not have the stored dtype.
                weight = converted(stored, dtype=variant.dtype).to(variant.device)
                setattr(module.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
            if isinstance(self.view, int):
                set_table(model, variant.device, variant.dtype)
                attention: Any = module.attn
                attention.layer_idx = self.view  # the index of its cache
                if variant.rotary_dim == "none":
                    attention.rotary_dim = None
        return model.eval()

    def _skeleton(self, rotary_dim: RotaryDim) -> CodeGenForCausalLM:
        """Return a model of one block without memory. It must not be changed: copying it is faster than making it."""
        if rotary_dim not in self._skeletons:
            config = copy.deepcopy(self._config)
            head_dim = config.n_embd // config.n_head
            config.rotary_dim = head_dim if rotary_dim == "none" else rotary_dim
            self._skeletons[rotary_dim] = skeleton(config, 1)
        return self._skeletons[rotary_dim]


@contextlib.contextmanager
def _shortage_reported(view: WeightsView) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        name = f"blocks.{view}" if isinstance(view, int) else view
        raise WeightsError(f"The weights of {name} do not fit into memory: {described(error)}") from error


def refusal(config: CodeGenConfig, rotary_dim: RotaryDim) -> str | None:
    """Return why Hugging Face refuses a rotary_dim for this architecture; None if it does not.

    Its own model of one block decides, on the meta device: shapes are checked and nothing is computed.

    Raises:
        CgverifyError: the model does not run with a rotary_dim of 2 either, so that another setting is the reason.
    """
    if rotary_dim == "none":
        return None
    refused = _raised_with(config, rotary_dim)
    if refused is None:
        return None
    if rotary_dim != 2 and (other := _raised_with(config, 2)) is not None:
        raise CgverifyError(f"Hugging Face's model of this config does not run: {described(other)}.")
    return f"Hugging Face refuses rotary_dim {rotary_dim}: {described(refused)}"


def _raised_with(config: CodeGenConfig, rotary_dim: int) -> Exception | None:
    """Return what Hugging Face's model of one block raises with a rotary_dim; None if it runs."""
    changed = copy.deepcopy(config)
    changed.rotary_dim = rotary_dim
    try:
        skeleton(changed, 1).transformer(inputs_embeds=torch.empty(1, 1, changed.n_embd, device="meta"))
    except Exception as error:  # code of Hugging Face, which may refuse in any way
        return error
    return None


def _in_view(model: CodeGenForCausalLM, view: WeightsView) -> nn.Module:
    module: nn.Module = model.get_submodule("transformer.h.0" if isinstance(view, int) else _ENDS[view])
    return module


def _require_finite(tensor: torch.Tensor, name: str) -> None:
    # A sum is not finite if any element is not, and is much faster than a check of each.
    if not tensor.sum().isfinite():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise WeightsError(f"{name} has {bad} NaN or infinite values: the weights are damaged.")
