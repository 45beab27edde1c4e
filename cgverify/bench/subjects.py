"""The modules that are measured: Hugging Face's and each candidate's, with equal weights in memory of their own."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.models.codegen.modeling_codegen import create_sinusoidal_positions

from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant, Window
from cgverify.observe.candidate import Candidate
from cgverify.observe.components import COMPONENTS

WHOLE = "model"
LAYER = 0

COPIES = 1.4
"""Memory of a booted bridge beside its model's, with room to work in: q, k and v are copies of the fused weight."""


@dataclass(frozen=True)
class Subjects:
    """One `CodeGenForCausalLM` (whole, or with the block of layer 0 alone), and a bridge per candidate."""

    config: CodeGenConfig
    reference: CodeGenForCausalLM
    bridges: Mapping[str, Any]
    """By candidate; an exception where booting raised one."""

    def of_reference(self, component: str) -> Any:
        """A module of Hugging Face's."""
        if component == WHOLE:
            return self.reference
        return self.reference.get_submodule(COMPONENTS[component].reference_path)

    def of_candidate(self, candidate: str, component: str) -> Any:
        """A module of a bridge; raises whatever booting raised."""
        bridge = self.bridges[candidate]
        if isinstance(bridge, BaseException):
            raise bridge
        return bridge if component == WHOLE else bridge.get_submodule(COMPONENTS[component].bridge_path)


class Workshop:
    """Makes models of one checkpoint in one setting."""

    def __init__(self, source: Source, setting: ModelVariant, component: str) -> None:
        self.source = source
        self.setting = setting
        self.whole = component == WHOLE
        self._window = Window(source)

    def model(self) -> CodeGenForCausalLM:
        """A model in eval mode with weights of its own: all layers, or the block of layer 0."""
        if self.whole:
            return whole_model(self.source, self.setting)
        if self._window.view is None:
            self._window.show(LAYER)
        return self._window.model(self.setting)

    def subjects(self, candidates: Mapping[str, Candidate]) -> Subjects:
        """Both sides; a candidate that cannot be booted stands there as what it raised."""
        reference = self.model()
        return Subjects(
            self.source.config,
            reference,
            {name: self._bridge(each, reference) for name, each in candidates.items()},
        )

    def lacking(self, candidates: int) -> str | None:
        """Why the models do not fit into this machine's memory; None if they do."""
        if not self.whole or self.setting.device.type != "cpu":
            return None
        with torch.device("meta"):
            values = sum(parameter.numel() for parameter in CodeGenForCausalLM(self.source.config).parameters())
        needed = values * self.setting.dtype.itemsize * (1 + COPIES * candidates)
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if needed <= free:
            return None
        return f"the whole models would take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"

    @staticmethod
    def _bridge(candidate: Candidate, reference: nn.Module) -> Any:
        try:
            return candidate.boot(copy.deepcopy(reference))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a candidate may fail in any way, and that is a result
            return error


def whole_model(source: Source, setting: ModelVariant) -> CodeGenForCausalLM:
    """All layers, as `from_pretrained(dtype=…)` leaves them: the sin/cos tables in float32 unless that is narrower.

    Raises:
        WeightsError: a tensor that cannot be read.
    """
    config = copy.deepcopy(source.config)
    config.rotary_dim = setting.rotary_dim
    config.architectures = ["CodeGenForCausalLM"]
    with torch.device("meta"):
        model = CodeGenForCausalLM(config)
    for name, parameter in list(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        weight = source.read(name, parameter.shape).to(setting.device, setting.dtype)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
    table = create_sinusoidal_positions(config.n_positions, config.rotary_dim)
    for block in model.transformer.h:
        block.attn.embed_positions = table.to(
            setting.device, torch.promote_types(torch.float32, setting.dtype), copy=True
        )
    return model.eval()


def bytes_of(module: nn.Module) -> int:
    """Memory of all parameters and buffers, each storage once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in itertools.chain(module.parameters(), module.buffers())
        if not tensor.is_meta
    }
    return sum(storages.values())
