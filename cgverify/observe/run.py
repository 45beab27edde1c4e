"""Run a component on one side and observe it."""

from __future__ import annotations

from typing import Any

from cgverify.common.environment import allowed
from cgverify.oracle.parameters import Parameters
from cgverify.oracle.shortcuts import Shortcuts


def reference_parameters(model: Any) -> Parameters:
    """The weights of a one-block `CodeGenForCausalLM`, with the shortcuts that this process allows products."""
    return Parameters(model, lambda one: one.transformer.h[0].attn.embed_positions, Shortcuts(allowed()))
