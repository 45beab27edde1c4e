"""How far rounding moves what a whole model returns: Hugging Face's own model, with more roundings drawn at random.

Errors add up over the layers and have no closed bound. So their spread is sampled, as that of a gradient is
(`cgverify/oracle/monte_carlo.py`), here on Hugging Face's modules: in each of `SAMPLES` runs the input of every Linear
and the output of every block are off as if they had been stored once more, and the output of every Linear as if it had
been summed in another order. In float64 too, roundings are those of float32, in which every model computes its scores.

A row of logits x ∈ Rᵛ, at one token, that moves by e_k in run k has the spread s = √(Σ_k ‖e_k‖² / SAMPLES). Since all
logits of a token come from one hidden state, an error of the whole row is judged:

    ‖tap − x‖₂ <= B = 8 · s

with Hoeffding's λ = 8, as for products (`cgverify/oracle/product.py`). On codegen-nano Hugging
Face's own rows alone and correct variants of the bridge were at most 2.4 s away in float32 and 1.9 s in bfloat16 (10
prompts), 1.5 s in float16 and 1.2 s in float64 (2 prompts). Padding that is seen moves a row by 44 s and more in
bfloat16, and by 7·10⁵ s in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cgverify.oracle.arithmetic import HALVES
from cgverify.oracle.monte_carlo import Drawn, Roundings
from cgverify.oracle.shortcuts import Shortcuts

SAMPLES = 2
"""Each has as many independent errors as the model has dimensions."""

FACTOR = 8.0


def with_bound(
    call: Callable[[], torch.Tensor], model: nn.Module, shortcuts: Shortcuts
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits `[batch, seq, vocabulary]` that a call of a model returns, and B, `[batch, seq]`.

    Args:
        model: the `CodeGenForCausalLM` that is called.
    """
    logits = call()
    squares = torch.zeros(logits.shape[:-1], dtype=torch.float64)
    for seed in range(SAMPLES):
        with _drawn(model, Drawn(seed, shortcuts)):
            squares += distance(call(), logits).square() / SAMPLES
    return logits, FACTOR * squares.sqrt()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Return ‖ours − theirs‖₂ of each row, `[…]`, of tensors `[…, vocabulary]`."""
    norms: torch.Tensor = (ours.to(torch.float64) - theirs.to(torch.float64)).norm(dim=-1)
    return norms


@contextlib.contextmanager
def _drawn(model: nn.Module, roundings: Roundings) -> Iterator[None]:
    def moved(x: torch.Tensor, move: Callable[[torch.Tensor, torch.dtype], torch.Tensor]) -> torch.Tensor:
        wide = x.detach().to("cpu", torch.float64)
        return move(wide, x.dtype if x.dtype in HALVES else torch.float32).to(x.device, x.dtype)

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return moved(args[0], roundings.stored), *args[1:]

    def after(linear: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x, weight = (each.detach().to(torch.float32).square() for each in (args[0], linear.weight))
        squares = functional.linear(x, weight).to("cpu", torch.float64)
        return moved(output, lambda wide, dtype: roundings.summed(wide, lambda: squares, x.shape[-1], dtype))

    def after_block(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return moved(output[0], roundings.stored), *output[1:]
        return moved(output, roundings.stored)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        for block in model.get_submodule("transformer.h").children():
            stack.callback(block.register_forward_hook(after_block).remove)
        yield
