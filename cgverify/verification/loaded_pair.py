"""Verify a bridge and its reference that are in memory already, block by block, without a copy of either."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import CodeGenForCausalLM

from cgverify.bridge.codegen_format import NotCodeGenError, config_from
from cgverify.checkpoint.lookup import describe_checkpoint
from cgverify.checkpoint.sin_cos_table import share_table
from cgverify.checkpoint.window import Window
from cgverify.common.errors import PairError, UsageError
from cgverify.common.printable import described
from cgverify.common.records import EAGER, IN_MEMORY, Cell, CellResult, Checkpoint, Verdict, WeightsView
from cgverify.observe.bits import same_tensor
from cgverify.observe.components import COMPONENTS
from cgverify.observe.fault import calls_a_side, is_ours
from cgverify.observe.generations import refused_attention
from cgverify.observe.infinite_masks import compatible_inputs, with_infinite_masks
from cgverify.observe.run import reference_parameters, set_attention
from cgverify.oracle.parameters import Parameters
from cgverify.plan.batches import group_into_batches
from cgverify.plan.cases import AFTER, BEFORE, DEFAULT_CASES, SAMPLED
from cgverify.plan.cells import weights_view
from cgverify.verification.compatibility import ProcessedWeights, processed_reference
from cgverify.verification.judge import DEFAULT_JUDGE, uncompared
from cgverify.verification.observe_cell import Reference, observe_cell
from cgverify.verification.same_model import differences
from cgverify.verification.stock_model import departures

_COMPATIBLE_PLAIN = tuple(case for case in DEFAULT_CASES if case not in SAMPLED)
COMPATIBLE_CASES = (*_COMPATIBLE_PLAIN, "masked_row", "train", "cast_table", "autocast")
"""The cases in which a bridge in compatibility mode can be verified.

The others have no counterpart there: gradients, and hooks behind a flag, whose inputs a block then takes from before
its layer norm.
"""


class MemoryWeights:
    """The weights of a model in memory: a `cgverify.checkpoint.source.Source`."""

    def __init__(self, model: CodeGenForCausalLM) -> None:
        self.config = model.config
        self.origin = IN_MEMORY
        self.stored_width = model.dtype.itemsize
        tensors = model.named_parameters(remove_duplicate=False)  # embedding and unembedding may be tied
        self._tensors: dict[str, torch.Tensor] = {name: one.detach() for name, one in tensors}
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self.digest = digest.hexdigest()[:16]

    def read(self, name: str, _: torch.Size) -> torch.Tensor:
        return self._tensors[name].cpu()


class LoadedPair:
    """A bridge, and the model that it must agree with.

    Raises:
        PairError: the reference is not what Hugging Face's class builds from its config, the bridge is not a bridge,
            both share weights, or they are not of one model. Nothing is run.
    """

    def __init__(self, bridge: nn.Module, reference: nn.Module) -> None:
        if not isinstance(reference, CodeGenForCausalLM) or any(
            isinstance(module, GeneralizedComponent) for module in reference.modules()
        ):
            raise PairError(
                "The reference is not a CodeGenForCausalLM as transformers loads it. Booting a bridge changes its "
                "model in place: boot it over a copy, and give the original."
            )
        if not hasattr(bridge, "blocks"):
            raise PairError(f"A {type(bridge).__name__} is not a bridge: give the TransformerBridge first.")
        model = getattr(bridge, "original_model", None)
        if not isinstance(model, CodeGenForCausalLM):
            raise PairError(f"The bridge wraps a {type(model).__name__}: give one over a CodeGenForCausalLM.")
        shared = {parameter.data_ptr() for parameter in reference.parameters()}
        if any(parameter.data_ptr() in shared for parameter in bridge.parameters()):
            raise PairError(
                "Bridge and reference share weights in memory: boot the bridge over a copy.deepcopy of the model."
            )
        self._bridge, self._reference = bridge, reference
        self._is_processed = bool(getattr(bridge, "compatibility_mode", False))
        try:
            config_from(reference.config.to_dict(), "The reference")
        except NotCodeGenError as error:
            raise PairError(str(error)) from error
        _require_none(
            departures(reference),
            "The reference is not what Hugging Face's class builds from its config",
            "undo that, or load the reference again with from_pretrained",
        )
        _require_none(
            departures(model),
            "The model around the bridge's components is not what Hugging Face's class builds from its config",
            "undo that, or boot the bridge over a copy.deepcopy of the reference",
        )
        _require_none(
            differences(bridge, model, reference, self._is_processed),
            "Bridge and reference are not of one model",
            "boot the bridge over a copy.deepcopy of the reference, and edit neither afterwards",
        )
        self._weights = MemoryWeights(reference)

    @property
    def checkpoint(self) -> Checkpoint:
        return describe_checkpoint(IN_MEMORY, "auto", self._weights)

    @property
    def dtype(self) -> str:
        return str(self._reference.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self._reference.device)

    @property
    def plain_cases(self) -> tuple[str, ...]:
        """The cases that are verified if none are named."""
        return _COMPATIBLE_PLAIN if self._is_processed else DEFAULT_CASES

    def require(self, cells: Sequence[Cell]) -> None:
        """Raise UsageError if there are cells in which this pair cannot be verified."""
        unfit = sorted({cell.case for cell in cells} - set(COMPATIBLE_CASES)) if self._is_processed else []
        if unfit:
            raise UsageError(
                f"In compatibility mode a bridge cannot be verified in {', '.join(unfit)}: leave that out, or verify "
                f"the bridge before enable_compatibility_mode(). The possible cases are {', '.join(COMPATIBLE_CASES)}."
            )
        if self._is_processed and any(cell.attention != EAGER for cell in cells):
            raise UsageError("In compatibility mode a bridge is verified with eager attention: leave attentions out.")

    def verify(self, cells: Sequence[Cell]) -> Iterator[CellResult]:
        """Yield the results of cells of this pair.

        Both models are in eval mode while they are verified, and the reference runs the cells' implementation of
        attention. Only the eager one has scores and a pattern to compare with.

        Raises:
            PairError: the bridge itself does not return what its model returns.
        """
        modes = [(module, module.training) for side in (self._bridge, self._reference) for module in side.modules()]
        chosen = self._weights.config._attn_implementation
        self._bridge.eval()
        self._reference.eval()
        try:
            self._require_logits_passed_on()
            window = Window(self._weights)
            for batch in group_into_batches(cells):
                if (refused := refused_attention(batch[0].attention)) is not None:
                    yield from uncompared(batch, Verdict.UNSUPPORTED, refused)
                    continue
                set_attention(self._reference, batch[0].attention)
                window.show(weights_view(batch[0]))
                yield from self._verify_batch(batch, window.spread())
        finally:
            set_attention(self._reference, chosen)
            for module, mode in modes:
                module.training = mode

    @calls_a_side
    def _require_logits_passed_on(self) -> None:
        """Check that the bridge itself returns the logits of its model. The cells run the components and not it.

        Raises:
            PairError: it returns others, or raises what its model has not raised.
        """
        model = cast(Any, self._bridge).original_model
        ids = torch.arange(6, device=self._reference.device).view(2, 3) % model.config.vocab_size
        entered: list[bool] = []
        logits: list[torch.Tensor] = []

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs.get("input_ids")
            entered.append(isinstance(given, torch.Tensor) and torch.equal(given, ids))

        handles = (
            model.register_forward_pre_hook(enter, with_kwargs=True),
            model.register_forward_hook(lambda _, __, output: logits.append(output.logits)),
        )
        try:
            with torch.no_grad():
                output = self._bridge(ids.clone())
        except BaseException as error:  # a candidate may fail in any way, and that is a finding
            if isinstance(error, KeyboardInterrupt) or is_ours(error):
                raise
            if entered and not logits:
                return  # its components raise, which the cells find
            raise PairError(f"The bridge's own forward raises {described(error)}") from error
        finally:
            for handle in handles:
                handle.remove()
        returned = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
        passed_on = isinstance(returned, torch.Tensor) and bool(logits) and same_tensor(returned, logits[-1])
        if entered != [True] or not passed_on:
            raise PairError(
                "The bridge's own forward does not return the logits of the model that it wraps, called once with the "
                "same tokens: its method forward, its class or a torch hook on it may have been changed. To verify its "
                "components, undo that."
            )

    def _verify_batch(self, cells: Sequence[Cell], spread: float) -> list[CellResult]:
        view, config = weights_view(cells[0]), self._weights.config
        model = _one_block(self._reference, [COMPONENTS[kind].reference_path for kind in _PARTS], view)
        bridge = _one_block(self._bridge, [COMPONENTS[kind].bridge_path for kind in _PARTS], view)
        model.config, bridge.cfg = config, cast(Any, self._bridge).cfg
        share_table(self._reference, model)
        bridge.__dict__["original_model"] = cast(Any, self._bridge).original_model  # whose table its attention uses
        if not self._is_processed:
            reference = Reference(model, self._parameters(model), config, spread)
            observed = [observe_cell(cell, reference, bridge) for cell in cells]
            return DEFAULT_JUDGE.results(observed, reference.parameters)
        processed = processed_reference(model, bridge)
        parameters = self._parameters(processed)
        change_inputs = partial(compatible_inputs, dtype=getattr(torch, self.dtype))
        reference = Reference(processed, parameters, config, spread, change_inputs, with_infinite_masks)
        weights = ProcessedWeights(self._parameters(model), reference.parameters)
        observed = [observe_cell(cell, reference, bridge) for cell in cells]
        observed = [replace(one, extra_findings=weights.findings(one.cell.kind)) for one in observed]
        return DEFAULT_JUDGE.results(observed, reference.parameters)

    def _parameters(self, model: nn.Module) -> Parameters:
        return reference_parameters(_on_cpu(model), device=self._reference.device.type)


def _on_cpu(model: nn.Module) -> nn.Module:
    """Return a model if it is on the CPU, or else a copy of it there."""
    tensors = [*model.parameters(), *model.buffers()]
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return model
    copies = {id(tensor): tensor.detach().cpu() for tensor in tensors}
    copies |= {id(weight): nn.Parameter(copies[id(weight)], requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, copies)


def _require_none(problems: Iterable[str], what: str, to_do: str) -> None:
    """Raise PairError for the first problem, with the number of all others."""
    found = list(problems)
    if found:
        more = f" (and {len(found) - 1} more like this)" if len(found) > 1 else ""
        raise PairError(f"{what}: {found[0]}{more}. To verify them, {to_do}.")


_PARTS = (*BEFORE, "block", *AFTER)
"""The components that make up a model of one block."""


def _one_block(model: nn.Module, paths: Sequence[str], view: WeightsView) -> Any:
    """Return a model of one block, the one in view, that consists of the model's own modules.

    Args:
        paths: of the modules, in a model of one block: `lm_head`, `transformer.h.0`.
    """
    one = nn.Module()
    for path in paths:
        *owners, name = path.removesuffix(".0").split(".")
        module = model.get_submodule(path.removesuffix(".0"))
        owner = one
        for each in owners:
            if not hasattr(owner, each):
                owner.add_module(each, nn.Module())
            owner = owner.get_submodule(each)
        blocks = cast(nn.ModuleList, module)
        block = view if isinstance(view, int) else 0
        owner.add_module(name, nn.ModuleList([blocks[block]]) if path.endswith(".0") else module)
    return one
