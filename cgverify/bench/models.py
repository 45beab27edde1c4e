"""The models that are measured: Hugging Face's and each candidate's, with equal weights in separate memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.bridge.codegen_format import skeleton
from cgverify.checkpoint.assembled import assembled
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant, Window
from cgverify.common.memory import available
from cgverify.observe.candidate import Candidate
from cgverify.observe.components import COMPONENTS

WHOLE = "model"
LAYER = 0

COPIES = 1.4
"""Memory of a booted bridge relative to its model's, with space to work: q, k and v are copies of the fused weight."""


@dataclass(frozen=True)
class Models:
    """One `CodeGenForCausalLM` (whole, or with only the block of layer 0) and a bridge of it per candidate."""

    config: CodeGenConfig
    reference: CodeGenForCausalLM
    bridges: Mapping[str, Any]
    """By candidate. An exception if booting raised one."""

    def of_candidate(self, candidate: str, component: str) -> Any:
        """Return a bridge's module of a component. Raises what booting the bridge raised."""
        bridge = self.bridges[candidate]
        if isinstance(bridge, BaseException):
            raise bridge
        return bridge_module(bridge, component)


def reference_module(model: nn.Module, component: str) -> Any:
    """Return Hugging Face's module of a component."""
    return model if component == WHOLE else model.get_submodule(COMPONENTS[component].reference_path)


def bridge_module(bridge: Any, component: str) -> Any:
    """Return a bridge's module of a component."""
    return bridge if component == WHOLE else bridge.get_submodule(COMPONENTS[component].bridge_path)


def load_model(source: Source, variant: ModelVariant, component: str) -> CodeGenForCausalLM:
    """Return a model that has a component, in eval mode and in its own memory: the whole one, or only one block.

    Raises:
        WeightsError: a tensor cannot be read.
    """
    window = Window(source)
    if component == WHOLE:
        return assembled(window, source.config, variant)
    window.show(LAYER)
    return window.model(variant)


def load_models(source: Source, variant: ModelVariant, component: str, candidates: Mapping[str, Candidate]) -> Models:
    """Return both sides, each in its own memory."""
    reference = load_model(source, variant, component)
    bridges = {name: _boot(candidate, copy.deepcopy(reference)) for name, candidate in candidates.items()}
    return Models(source.config, reference, bridges)


def _boot(candidate: Candidate, model: nn.Module) -> Any:
    try:
        return candidate.boot(model)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a candidate may fail in any way, and that is a result
        return error


def memory_shortage(config: CodeGenConfig, variant: ModelVariant, bridges: int) -> str | None:
    """Return why a whole model and its bridges do not fit into this machine's memory, or None if they do."""
    if variant.device.type != "cpu":
        return None
    values = sum(parameter.numel() for parameter in skeleton(config, config.n_layer).parameters())
    needed, free = values * variant.dtype.itemsize * (1 + COPIES * bridges), available()
    if needed <= free:
        return None
    return f"the whole models would take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"


def bytes_of(module: nn.Module) -> int:
    """Return the memory of all parameters and buffers, counting each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in itertools.chain(module.parameters(), module.buffers())
        if not tensor.is_meta
    }
    return sum(storages.values())
