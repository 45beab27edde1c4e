"""The named architectures. No torch here: `cgverify models` and the messages of errors need none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NANO = Path(__file__).parent / "codegen-nano"
"""The trained checkpoint that ships in the package."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a CodeGen model."""

    n_embd: int
    n_layer: int
    n_head: int
    rotary_dim: int
    hub: str | None
    """Id on the Hugging Face hub of the checkpoint that the bare name stands for."""
    vocab_size: int = 51200
    n_positions: int = 2048

    @property
    def block_parameters(self) -> int:
        """Attention 4·d², MLP 8·d² and its biases 5·d, layer norm 2·d."""
        return 12 * self.n_embd**2 + 7 * self.n_embd

    @property
    def parameters(self) -> int:
        ends = 2 * self.vocab_size * self.n_embd + self.vocab_size + 2 * self.n_embd
        return self.n_layer * self.block_parameters + ends


def _salesforce(size: str, n_embd: int, n_layer: int, n_head: int, rotary_dim: int) -> dict[str, Architecture]:
    name = f"codegen-{size}"
    variants = {f"{name}-{variant}": f"Salesforce/{name}-{variant}" for variant in ("mono", "multi", "nl")}
    shapes = {variant: Architecture(n_embd, n_layer, n_head, rotary_dim, hub) for variant, hub in variants.items()}
    return {name: shapes[f"{name}-mono"], **shapes}


ARCHITECTURES: dict[str, Architecture] = {
    "codegen-nano": Architecture(192, 5, 8, 16, hub=None, vocab_size=256, n_positions=512),
    **_salesforce("350M", 1024, 20, 16, 32),
    **_salesforce("2B", 2560, 32, 32, 64),
    **_salesforce("6B", 4096, 33, 16, 64),
    **_salesforce("16B", 6144, 34, 24, 64),
}
