"""The named checkpoints. Importing this needs no torch, so that `cgverify models` and error messages are quick."""

from __future__ import annotations

from pathlib import Path

from cgverify.common.records import Checkpoint

NANO = Path(__file__).parent / "codegen-nano"
"""The trained checkpoint that is part of the package."""

ABSENT = Checkpoint(
    name="",
    asked="",
    weights="auto",
    origin="not available",
    digest="",
    n_layers=0,
    rotary_dim=0,
    n_positions=1 << 30,
    n_embd=0,
    vocab_size=0,
)
"""A checkpoint that was not found, whose shape is unknown."""


def _named(name: str, n_embd: int, n_layers: int, n_head: int, rotary_dim: int, **more: int) -> Checkpoint:
    shape = {"n_embd": n_embd, "n_layers": n_layers, "n_head": n_head, "rotary_dim": rotary_dim}
    return ABSENT.model_copy(update={"name": name, "vocab_size": 51200, "n_positions": 2048, **shape, **more})


SALESFORCE = {"350M": (1024, 20, 16, 32), "2B": (2560, 32, 32, 64), "6B": (4096, 33, 16, 64), "16B": (6144, 34, 24, 64)}
"""n_embd, n_layers, n_head and rotary_dim of each size."""

HUB_IDS = {
    f"codegen-{size}{suffix}": f"Salesforce/codegen-{size}-{suffix.removeprefix('-') or 'mono'}"
    for size in SALESFORCE
    for suffix in ("", "-mono", "-multi", "-nl")
}
"""The id on the Hugging Face hub of each name. codegen-nano has none."""

NAMED: dict[str, Checkpoint] = {
    "codegen-nano": _named("codegen-nano", 192, 5, 8, 16, vocab_size=256, n_positions=512),
    **{name: _named(name, *SALESFORCE[name.split("-")[1]]) for name in HUB_IDS},
}
"""The shape of each named checkpoint, before anything of it is found."""


def block_parameters(checkpoint: Checkpoint) -> int:
    """Return the number of parameters of a block.

    Attention has 4·d², the MLP of width w has 2·d·w and its biases w + d, and the layer norm has 2·d.
    """
    embd = checkpoint.n_embd
    inner = checkpoint.n_inner or 4 * embd
    return 4 * embd**2 + 2 * embd * inner + inner + 3 * embd


def parameters(checkpoint: Checkpoint) -> int:
    ends = 2 * checkpoint.vocab_size * checkpoint.n_embd + checkpoint.vocab_size + 2 * checkpoint.n_embd
    return checkpoint.n_layers * block_parameters(checkpoint) + ends
