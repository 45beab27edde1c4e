"""A bridge and its reference that are in memory already -> findings, block by block, without a copy of either."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import CodeGenForCausalLM

from cgverify.checkpoint.window import Window
from cgverify.common.errors import UsageError
from cgverify.common.records import IN_MEMORY, Cell, CellResult, Checkpoint, Finding
from cgverify.oracle.parameters import Parameters
from cgverify.plan.batches import group_into_batches
from cgverify.plan.cells import WeightsView, weights_view
from cgverify.verification.cell import CandidateFailedError, Reference, candidate_failed, judge_cells, observe_cell
from cgverify.verification.check import ObservedCell
from cgverify.verification.compatibility.held import COMPATIBLE_CASES, as_it_is, as_processed
from cgverify.verification.diagnosis.sentence import sentence


class MemoryWeights:
    """The weights of a model in memory: a `cgverify.checkpoint.source.Source`."""

    def __init__(self, model: CodeGenForCausalLM) -> None:
        self.config = model.config
        self.origin = IN_MEMORY
        self.stored_width = model.dtype.itemsize
        self._tensors: dict[str, torch.Tensor] = {name: one.detach() for name, one in model.named_parameters()}
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self.digest = digest.hexdigest()[:16]

    def read(self, name: str, _: torch.Size) -> torch.Tensor:
        return self._tensors[name]


class LoadedPair:
    """A bridge beside the model that it must agree with.

    Raises:
        UsageError: the reference is no CodeGen model of Hugging Face's, the bridge is none, or both share weights.
    """

    def __init__(self, bridge: nn.Module, reference: nn.Module) -> None:
        if not isinstance(reference, CodeGenForCausalLM) or any(
            type(module).__module__.startswith(("transformer_lens", "cgverify")) for module in reference.modules()
        ):
            raise UsageError(
                "The reference is no CodeGenForCausalLM as transformers loads it: booting a bridge changes its model "
                "in place, so boot it over a copy, and give the original."
            )
        if not hasattr(bridge, "blocks"):
            raise UsageError(f"A {type(bridge).__name__} is no bridge: give the TransformerBridge first.")
        shared = {parameter.data_ptr() for parameter in reference.parameters()}
        if any(parameter.data_ptr() in shared for parameter in bridge.parameters()):
            raise UsageError(
                "Bridge and reference share weights in memory: boot the bridge over a copy.deepcopy of the model."
            )
        self._bridge, self._reference = cast(Any, bridge), cast(Any, reference)
        self._weights = MemoryWeights(reference)

    @property
    def checkpoint(self) -> Checkpoint:
        config = self._weights.config
        return Checkpoint(
            name=IN_MEMORY,
            asked=IN_MEMORY,
            weights="auto",
            origin=IN_MEMORY,
            digest=self._weights.digest,
            n_layers=config.n_layer,
            rotary_dim=config.rotary_dim,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            vocab_size=config.vocab_size,
        )

    @property
    def dtype(self) -> str:
        return str(self._reference.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self._reference.device.type)

    @property
    def _processed(self) -> bool:
        return bool(getattr(self._bridge, "compatibility_mode", False))

    def require(self, cells: Sequence[Cell]) -> None:
        """Raise UsageError for cases that this pair cannot be verified in."""
        unfit = sorted({cell.case for cell in cells} - set(COMPATIBLE_CASES)) if self._processed else []
        if unfit:
            raise UsageError(
                f"In compatibility mode a bridge has nothing to be held to in {', '.join(unfit)}: leave that out, or "
                f"verify it before enable_compatibility_mode(). "
                f"The cases that it has are {', '.join(COMPATIBLE_CASES)}."
            )

    def verify(self, cells: Sequence[Cell]) -> Iterator[CellResult]:
        """The results of cells of this pair. Both are put into eval mode while they are verified."""
        modes = [(module, module.training) for side in (self._bridge, self._reference) for module in side.modules()]
        self._bridge.eval()
        self._reference.eval()
        try:
            window = Window(self._weights)
            for batch in group_into_batches(cells):
                window.show(weights_view(batch[0]))
                yield from self._unit(batch, window.spread())
        finally:
            for module, mode in modes:
                module.training = mode

    def _unit(self, cells: Sequence[Cell], spread: float) -> list[CellResult]:
        seen = weights_view(cells[0])
        model, bridge = _reference_block(self._reference, seen), _bridge_block(self._bridge, seen)
        held = as_processed(model, bridge) if self._processed else as_it_is(model)
        reference = Reference(held.model, self._weights.config, spread)
        results, observed = [], []
        for cell in cells:
            try:
                one = observe_cell(cell, reference, bridge, bend=held.bend)
            except CandidateFailedError as error:
                results += candidate_failed([cell], error)
            else:
                observed.append(replace(one, beside=held.beside(cell.kind)))
        return judge_cells(observed, reference.parameters, blame=_blame) + results


def _blame(observed: ObservedCell, findings: Sequence[Finding], parameters: Parameters) -> str:
    """What is wrong with a weight comes before what is computed with it."""
    folded = [finding.message for finding in observed.beside if finding.verdict.fails]
    return folded[0] if folded else sentence(observed, findings, parameters)


def _reference_block(model: Any, seen: WeightsView) -> nn.Module:
    """A `CodeGenForCausalLM` of the one block in view, by the model's own modules."""
    one = cast(Any, nn.Module())
    one.config = model.config
    one.transformer = nn.Module()
    one.transformer.wte, one.transformer.ln_f = model.transformer.wte, model.transformer.ln_f
    one.transformer.h = nn.ModuleList([model.transformer.h[seen if isinstance(seen, int) else 0]])
    one.lm_head = model.lm_head
    return cast(nn.Module, one)


def _bridge_block(bridge: Any, seen: WeightsView) -> nn.Module:
    """A bridge of the one block in view, by the bridge's own components."""
    one = cast(Any, nn.Module())
    one.cfg = bridge.cfg
    for name in ("embed", "ln_final", "unembed"):
        setattr(one, name, getattr(bridge, name))
    one.blocks = nn.ModuleList([bridge.blocks[seen if isinstance(seen, int) else 0]])
    return cast(nn.Module, one)
