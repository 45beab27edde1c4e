"""Generations of Hugging Face's CodeGen module, one file each.

Hugging Face has rewritten CodeGen once. Generations differ in where the sin/cos table is, how attention and block are
called, where their intermediate tensors can be seen, and in which order scores are masked, scaled and cast. Everything
else is common and is spelled in `components.py`, `stages.py` and the oracle. To support another generation, add a file
that makes a `Generation`, and list it in `KNOWN`.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib.metadata import version
from typing import Any

from transformers.models.codegen.modeling_codegen import CodeGenAttention, CodeGenBlock

from cgverify.common.errors import CgverifyError
from cgverify.observe.generations.embed_positions import EMBED_POSITIONS
from cgverify.observe.generations.generation import Generation
from cgverify.observe.generations.position_embeddings import POSITION_EMBEDDINGS

KNOWN = (EMBED_POSITIONS, POSITION_EMBEDDINGS)


@cache
def installed() -> Generation:
    """Return the generation that the installed classes of Hugging Face's CodeGen belong to.

    Raises:
        CgverifyError: they belong to none that is known.
    """
    lacking: list[str] = []
    for generation in KNOWN:
        misfits = generation.misfits()
        if not misfits:
            return generation
        lacking += misfits
    raise CgverifyError(
        f"transformers {version('transformers')} has a CodeGen that cgverify does not know ({', '.join(lacking)}): "
        "install a version of transformers that cgverify supports."
    )


def leading_arguments(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of attention or a block that are given by position, in the order of Hugging Face's module.

    A block calls its attention with `position_ids` in every generation. If they have no position in the attention of
    this one, the cache that follows keeps its keyword: a bridge may have the order of the generation before.
    """
    parameters = inspect.signature((CodeGenAttention if kind == "attn" else CodeGenBlock).forward).parameters
    places = {name: each.default for name, each in parameters.items() if each.kind is each.POSITIONAL_OR_KEYWORD}
    del places["self"]
    if "position_ids" not in places:
        del places["cache"]
    return {name: arguments.get(name, default) for name, default in places.items()}


def refused_attention(implementation: str) -> str | None:
    """Return why the installed CodeGen cannot run an implementation of attention; None if it can."""
    if implementation in (known := installed().attentions):
        return None
    return (
        f"CodeGen of transformers {version('transformers')} has no {implementation} attention: it has "
        f"{' and '.join(known)}"
    )
