"""A whole model as users call it: a padded batch, dropout of the embedding, the loss, and `generate`.

Errors add up over the layers, so logits have no bound here, and this is the one place where a tolerance was chosen and
not derived. Logits may differ from Hugging Face's by √u times the greatest one, with u the unit roundoff of the dtype,
or float32's if that is greater, since scores are float32 in every model. On codegen-nano the two sides, and Hugging
Face with other positions of the padding, were within .003 of that in float32 and .1 in 16 bits. Padding that is seen,
or a row that has another's tokens, moves logits by more. A fault of one component that moves them by less is seen where
the prompt passes through that component, by its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cgverify.common.printable import described
from cgverify.observe.candidate import restore_working_directory
from cgverify.observe.conditions import Conditions, apply_conditions
from cgverify.observe.fault import calls_a_side, is_ours
from cgverify.oracle.arithmetic import UNIT_ROUNDOFF
from cgverify.plan.cases import GENERATED_TOKENS

P = 0.3
"""The rate of dropout: of all modules in eval mode, and of the embedding in training."""


@dataclass(frozen=True)
class ModelCalls:
    """The logits of a batch of three rows, `[3, seq, vocabulary]`: in eval mode, and with the embedding dropped out."""

    logits: torch.Tensor
    dropped: torch.Tensor


def padded_batch(tokens: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and the mask of a batch: a prompt, its beginning with padding on the left, and its reverse."""
    padding = max(len(tokens) // 3, 1)
    first, *rest = tokens
    rows = (list(tokens), [first] * padding + list(tokens[:-padding]), [first, *reversed(rest)])
    ids = torch.tensor(rows, device=device)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return ids, mask


@calls_a_side
def call_model(root: Any, model: Any, tokens: Sequence[int], device: torch.device) -> ModelCalls:
    """Call a model or a bridge.

    Args:
        model: the `CodeGenForCausalLM` that is called, or that the bridge wraps.
    """
    ids, mask = padded_batch(tokens, device)
    outputs = []
    for conditions in (Conditions(dropout=P, training=False), Conditions(dropout=0.0, random_state=0)):
        with torch.no_grad(), apply_conditions(conditions, model, root, device):
            model.transformer.drop.p = P  # restored with the other rates
            output = root(ids, attention_mask=mask)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        outputs.append(logits.detach().cpu())
    return ModelCalls(*outputs)


def differences(bridge: Any, tokens: Sequence[int], reference: ModelCalls, greedy: Sequence[torch.Tensor]) -> list[str]:
    """Return what a bridge of a whole model does wrong, in sentences.

    Args:
        reference: what Hugging Face's model returned.
        greedy: the bridge's own logits `[vocabulary]` for each token that it generated in a loop.

    Raises:
        BaseException: the bridge raised it.
    """
    device = reference_device(bridge)
    ids, mask = padded_batch(tokens, device)
    ours = call_model(bridge, bridge.original_model, tokens, device)
    found = []
    for row, what in enumerate(("first row", "row with padding on the left", "last row")):
        seen = mask[row].cpu().bool()
        if _differ(ours.logits[row, seen], reference.logits[row, seen]):
            found.append(f"the {what} of a batch has other logits than in Hugging Face's model")
    if not found and _differ(ours.dropped[0], reference.dropped[0]):
        found.append("the embedding is not dropped out as in Hugging Face's model")
    if not found:
        found += wrong_loss(bridge, ids, ours.logits[:1])
    return found + _wrong_generation(bridge, ids[:1], greedy)


def reference_device(root: nn.Module) -> torch.device:
    return next(root.parameters()).device


def _differ(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    if ours.shape != theirs.shape:
        return True
    wide, like = ours.to(torch.float64), theirs.to(torch.float64)
    return not bool(((wide - like).abs() <= _room(theirs) * like.abs().max()).all())


def _room(logits: torch.Tensor) -> float:
    return float(max(UNIT_ROUNDOFF[logits.dtype], UNIT_ROUNDOFF[torch.float32]) ** 0.5)


@calls_a_side
def wrong_loss(bridge: Any, ids: torch.Tensor, logits: torch.Tensor) -> list[str]:
    """Compare the loss of a bridge for the first row of `ids` with that of its logits, `[1, seq, vocabulary]`."""
    with torch.no_grad():
        loss = bridge(ids[:1], return_type="loss").cpu()
    expected = functional.cross_entropy(logits[0, :-1].to(torch.float64), ids[0, 1:].cpu())
    right = abs(float(loss) - float(expected)) <= _room(logits) * float(logits.abs().max())  # never of NaN
    return [] if right else ["the loss is not the mean of −log p of each next token"]


@calls_a_side
def _wrong_generation(bridge: Any, ids: torch.Tensor, greedy: Sequence[torch.Tensor]) -> list[str]:
    """Compare `generate` with the greedy tokens, up to the first that two logits contend for."""
    settings = {"do_sample": False, "stop_at_eos": False, "return_type": "tokens", "verbose": False}
    with torch.no_grad():
        row = bridge.generate(ids, max_new_tokens=GENERATED_TOKENS, **settings)[0].cpu()
    generated = row[ids.shape[1] :].tolist()
    if len(generated) != GENERATED_TOKENS or row[: ids.shape[1]].tolist() != ids[0].tolist():
        return [f"generate returns {len(row)} tokens where {ids.shape[1]} and {GENERATED_TOKENS} new ones are right"]
    for place, (token, logits) in enumerate(zip(generated, greedy, strict=False)):
        best = int(logits.argmax())
        if token == best:
            continue
        margin = float(logits[best]) - float(logits[token])
        if margin > _room(logits) * float(logits.abs().max()):
            return [f"generate chooses token {token} as number {place + 1}, and the greatest logit is that of {best}"]
        return []
    return []


@restore_working_directory()
def described_differences(
    bridge: Any, tokens: Sequence[int], reference: ModelCalls, greedy: Sequence[torch.Tensor]
) -> list[str]:
    """Return what `differences` returns, or what the bridge raises, in a sentence."""
    try:
        return differences(bridge, tokens, reference, greedy)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a candidate may fail in any way, and that is a finding
        if is_ours(error):
            raise
        return [f"the whole model raises where Hugging Face's does not: {described(error)}"]
