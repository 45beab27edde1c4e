"""Generations of Hugging Face's CodeGen module, one file each.

Hugging Face has rewritten CodeGen once. Generations differ in where the sin/cos table is, how attention and block are
called, where their intermediate tensors can be seen, and in which order scores are masked, scaled and cast. Everything
else is common and is spelled in `components.py`, `stages.py` and the oracle. To support another generation, add a file
that makes a `Generation`, and list it in `KNOWN`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

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


def refused_attention(implementation: str) -> str | None:
    """Return why the installed CodeGen cannot run an implementation of attention; None if it can."""
    if implementation in (known := installed().attentions):
        return None
    return (
        f"CodeGen of transformers {version('transformers')} has no {implementation} attention: it has "
        f"{' and '.join(known)}"
    )
