"""The loss: the mean of −log p of each next token.

With M = max x, d_j = 3u|x_j − M| the error of each exponent (`cgverify/oracle/softmax.py`), p the exact probabilities,
t the next token, V tokens in the vocabulary and n predictions, all of which may be stored in the dtype of the logits:

    L = d_t + Σ_j p_j expm1(d_j) + min(γ_V(a), 16a√V) + 8u + u|log p_t|
    B = R(ℓ, mean L + γ_n(a)·mean |log p_t|)
"""

from __future__ import annotations

import torch

from cgverify.oracle.arithmetic import UNIT_ROUNDOFF, Expected, accumulator, gamma, rounded_output
from cgverify.oracle.softmax import EXPONENT_ROUNDINGS


def loss(logits: torch.Tensor, tokens: torch.Tensor) -> Expected:
    """Return the loss, `[]`, of the logits `[seq, vocabulary]` of tokens `[seq]`."""
    u, a = UNIT_ROUNDOFF[logits.dtype], UNIT_ROUNDOFF[accumulator(logits.dtype)]
    x, target = logits[:-1].to(torch.float64), tokens[1:].unsqueeze(-1)
    n, vocabulary = x.shape
    surprise = -x.log_softmax(-1).gather(-1, target)
    exponent = EXPONENT_ROUNDINGS * u * (x - x.amax(-1, keepdim=True)).abs()
    denominator = (x.softmax(-1) * exponent.expm1()).sum(-1, keepdim=True)
    rounding = min(gamma(vocabulary, a), 16 * a * vocabulary**0.5) + 8 * u
    error = exponent.gather(-1, target) + denominator + rounding + u * surprise.abs()
    return rounded_output(surprise.mean(), error.mean() + gamma(n, a) * surprise.abs().mean(), logits.dtype)
