"""A whole model as users call it, beyond a prompt and its continuation.

| call | what is asked |
|---|---|
| a batch with padding, in eval mode with rates of dropout | logits are Hugging Face's within rounding |
| the same in training, with dropout of the embedding | logits are Hugging Face's within rounding |
| `run_with_cache` | under each name is the tensor that its hook is shown, bit for bit |
| `stop_at_layer` | what enters that block is returned, bit for bit |
| the loss | it is that of the logits (`cgverify/oracle/loss.py`) |
| `generate` for the batch, greedy | logits are Hugging Face's within rounding, each token has the greatest one |
| | and no random number is drawn |
| `generate`, sampling | the best token if it is the only choice, and others if all are as likely |

How far rounding moves logits is sampled from Hugging Face's model itself: `cgverify/verification/rounding_spread.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from cgverify.common.printable import described
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import restore_working_directory
from cgverify.observe.components import HOOK_ALIASES
from cgverify.observe.conditions import Conditions, apply_conditions
from cgverify.observe.fault import calls_a_side, is_ours
from cgverify.observe.taps import Observation, hook_points, watch_hooks
from cgverify.oracle.loss import loss
from cgverify.oracle.shortcuts import Shortcuts
from cgverify.plan.cases import GENERATED_TOKENS
from cgverify.verification.rounding_spread import distance, with_bound

P = 0.3
"""The rate of dropout: of all modules in eval mode, and of the embedding in training."""

EVALUATION, TRAINING = Conditions(dropout=P, training=False), Conditions(dropout=0.0, random_state=0)

ROWS = ("first row", "row with padding on the left", "last row")

HOT = 1024.0
"""A temperature at which any token of a vocabulary is about as likely as any other."""


@dataclass(frozen=True)
class BoundedLogits:
    """Logits of Hugging Face's model, `[batch, seq, vocabulary]`, and how far right ones may be from them."""

    value: torch.Tensor
    bound: torch.Tensor
    """`[batch, seq]`; see `cgverify/verification/rounding_spread.py`."""

    def differ_from(self, ours: torch.Tensor, where: Any) -> bool:
        """Return whether logits `[…, vocabulary]` are not those at some places of the batch and sequence."""
        theirs, bound = self.value[where], self.bound[where]
        if ours.shape != theirs.shape:
            return True
        return not (same_tensor(ours, theirs) or bool((distance(ours, theirs) <= bound).all()))


@dataclass(frozen=True)
class ModelCalls:
    """What Hugging Face's model returns for a batch, and the batch: a prompt in three rows, and its greedy tokens."""

    ids: torch.Tensor
    """`[3, seq]`, on the device of the model."""
    mask: torch.Tensor
    evaluated: BoundedLogits
    trained: BoundedLogits


def padded_batch(tokens: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and the mask of a batch: a prompt, its beginning with padding on the left, and its reverse.

    All rows begin with the same token. The rest of the padding is the end of the prompt, which changes what follows if
    it is seen.
    """
    padding = max(len(tokens) // 3, 1)
    first, *rest = tokens
    rows = (list(tokens), [first, *tokens[len(tokens) - padding + 1 :], *tokens[:-padding]], [first, *reversed(rest)])
    ids = torch.tensor(rows, device=device)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    return ids, mask


@calls_a_side
def _call(root: Any, model: Any, conditions: Conditions, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return the logits that a model or a bridge over it returns, on the CPU."""
    with torch.no_grad(), apply_conditions(conditions, model, root, args[0].device):
        model.transformer.drop.p = P  # restored with the other rates
        root.train(conditions.training)
        try:
            output = root(*args, **kwargs)
        finally:
            root.eval()
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits.detach().cpu()


def call_reference(model: Any, tokens: tuple[int, ...], device: torch.device, shortcuts: Shortcuts) -> ModelCalls:
    """Call Hugging Face's model, with the positions that its own `generate` gives it."""

    def run(conditions: Conditions, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        return _call(model, model, conditions, ids, attention_mask=mask, position_ids=positions)

    ids, mask = padded_batch(tokens, device)
    for _ in range(GENERATED_TOKENS):
        greedy = run(EVALUATION, ids, mask)[:, -1:].argmax(-1)
        ids, mask = torch.cat((ids, greedy.to(device)), 1), torch.cat((mask, torch.ones_like(mask[:, :1])), 1)
    evaluated, trained = (
        BoundedLogits(*with_bound(partial(run, conditions, ids, mask), model, shortcuts))
        for conditions in (EVALUATION, TRAINING)
    )
    return ModelCalls(ids, mask, evaluated, trained)


def differences(bridge: Any, nodes: Mapping[str, nn.Module], reference: ModelCalls) -> list[str]:
    """Return what a bridge of a whole model does wrong, in sentences.

    Args:
        nodes: the bridge's components by name: `embed`, `blocks.0`, …
        reference: what Hugging Face's model returned.

    Raises:
        BaseException: the bridge raised it.
    """
    found = []
    model, batch = bridge.original_model, (reference.ids, reference.mask)
    ours = _call(bridge, model, EVALUATION, batch[0], attention_mask=batch[1])
    trained = _call(bridge, model, TRAINING, batch[0], attention_mask=batch[1])
    seen = reference.mask.cpu().bool()
    for row, what in enumerate(ROWS):
        if reference.evaluated.differ_from(ours[row, seen[row]], (row, seen[row])):
            found.append(f"the {what} of a batch has other logits than in Hugging Face's model")
    if not found and reference.trained.differ_from(trained[seen], seen):
        found.append("the embedding is not dropped out as in Hugging Face's model")
    return found + _wrong_names(bridge, nodes, reference.ids[:1]) + _wrong_generation(bridge, reference)


def reference_device(root: nn.Module) -> torch.device:
    return next(root.parameters()).device


# --- names, layers and the loss ---------------------------------------------------------------------------------------


@calls_a_side
def _wrong_names(bridge: Any, nodes: Mapping[str, nn.Module], ids: torch.Tensor) -> list[str]:
    """Compare what hooks are shown with the cache of activations, by name, and with what `stop_at_layer` returns."""
    shown = Observation()
    points = {f"{name}.{path}": point for name, node in nodes.items() for path, point in hook_points(node)}
    with torch.no_grad():
        with watch_hooks(points, shown, {}):
            logits = bridge(ids)
        _, cache = bridge.run_with_cache(ids)
    aliases = {alias: shown.taps[path] for alias, path in _aliases(nodes) if path in shown.taps}
    expected, kept = shown.taps | aliases, dict(cache.items())
    found = [f"run_with_cache keeps no {name}" for name in aliases if name not in kept][:1]
    others = [name for name in expected if name in kept and not same_tensor(kept[name].cpu(), expected[name])]
    if others:
        more = f" and {len(others) - 1} more names" if len(others) > 1 else ""
        found.append(f"run_with_cache keeps another tensor than the hook is shown as {others[0]}{more}")
    return found + _wrong_layers(bridge, ids, shown) + wrong_loss(bridge, ids, logits.cpu())


def _aliases(nodes: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    """Return the names that researchers use for hooks, and the paths of those."""
    return [
        (f"{name}.{prefix}{alias}", f"{name}.{prefix}{path}")
        for name in nodes
        if name.startswith("blocks.")
        for prefix, kind in (("", "block"), ("attn.", "attn"), ("mlp.", "mlp"))
        for alias, path in HOOK_ALIASES[kind].items()
    ]


@calls_a_side
def _wrong_layers(bridge: Any, ids: torch.Tensor, shown: Observation) -> list[str]:
    found, layers = [], len(bridge.blocks)
    for layer in (layers // 2, -1):
        entering = shown.taps.get(f"blocks.{layer % layers}.hook_in")
        with torch.no_grad():
            state = bridge(ids, stop_at_layer=layer)
        if entering is not None and not (isinstance(state, torch.Tensor) and same_tensor(state.cpu(), entering)):
            found.append(f"stop_at_layer={layer} does not return what enters block {layer % layers}")
    return found


@calls_a_side
def wrong_loss(bridge: Any, ids: torch.Tensor, logits: torch.Tensor) -> list[str]:
    """Compare the loss of a bridge for `ids`, `[1, seq]`, with that of its logits, `[1, seq, vocabulary]`."""
    with torch.no_grad():
        ours = bridge(ids, return_type="loss").cpu()
    right = loss(logits[0], ids[0].cpu())
    is_right = abs(float(ours) - float(right.value)) <= float(right.bound)  # never of NaN
    return [] if is_right else ["the loss is not the mean of −log p of each next token"]


# --- generation -------------------------------------------------------------------------------------------------------


@calls_a_side
def _wrong_generation(bridge: Any, reference: ModelCalls) -> list[str]:
    """Compare `generate` of the batch with Hugging Face's logits, in each row up to the first other token."""
    length = reference.ids.shape[1] - GENERATED_TOKENS
    prompt = reference.ids[:, :length]
    settings = {"stop_at_eos": False, "return_type": "tokens", "verbose": False}
    generate = partial(bridge.generate, prompt, attention_mask=reference.mask[:, :length], **settings)
    before = torch.default_generator.get_state()
    with torch.no_grad():
        output = generate(max_new_tokens=GENERATED_TOKENS, do_sample=False, output_logits=True)
    drew = not torch.equal(torch.default_generator.get_state(), before)
    tokens, steps = output.sequences.cpu(), [each.cpu() for each in output.logits]
    if tokens.shape != reference.ids.shape or len(steps) != GENERATED_TOKENS:
        return [f"generate returns {tokens.shape[-1]} tokens where {length} and {GENERATED_TOKENS} new ones are right"]
    if not torch.equal(tokens[:, :length], prompt.cpu()):
        return ["generate returns another prompt than it was given"]
    found = ["generate draws random numbers, though it must not sample"] if drew else []
    for row, what in enumerate(ROWS):
        for place, (token, own) in enumerate(zip(tokens[row, length:].tolist(), steps, strict=True)):
            logits = own[row]
            if reference.evaluated.differ_from(logits, (row, length + place - 1)):
                found.append(f"generate has other logits for token {place + 1} of the {what} than Hugging Face's model")
                break
            if logits[token] < logits.max():
                best = f"the greatest logit is that of {int(logits.argmax())}"
                found.append(f"generate chooses token {token} as number {place + 1} of the {what}, and {best}")
                break
            if token != reference.ids[row, length + place]:  # it ties with Hugging Face's within rounding
                break
    return found or _wrong_samples(bridge, generate, steps[0])


@calls_a_side
def _wrong_samples(bridge: Any, generate: Any, logits: torch.Tensor) -> list[str]:
    """Sample one token of each row, whose logits are `[batch, vocabulary]`."""
    device = reference_device(bridge)
    with torch.no_grad(), apply_conditions(Conditions(random_state=0), bridge, bridge, device):
        best, hot = (
            generate(max_new_tokens=1, do_sample=True, **how)[:, -1:].cpu()
            for how in ({"top_k": 1}, {"temperature": HOT})
        )
    greatest = logits.amax(-1, keepdim=True)
    found = (
        [] if bool((logits.gather(-1, best) == greatest).all()) else ["generate does not choose the best of top_k=1"]
    )
    if bool((logits.gather(-1, hot) == greatest).all()):
        found.append(f"generate chooses the greatest logits at temperature {HOT:g}, where all tokens are as likely")
    return found


@restore_working_directory()
def described_differences(bridge: Any, nodes: Mapping[str, nn.Module], reference: ModelCalls) -> list[str]:
    """Return what `differences` returns, or what the bridge raises, in a sentence."""
    try:
        return differences(bridge, nodes, reference)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a candidate may fail in any way, and that is a finding
        if is_ours(error):
            raise
        return [f"the whole model raises where Hugging Face's does not: {described(error)}"]
