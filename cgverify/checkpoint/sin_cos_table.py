"""Set the sin/cos table of a CodeGen model.

The table is a buffer in each attention or, in newer versions of transformers, one in the model. Checkpoints do not
store it, so a model that was built on the meta device needs one.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.codegen.modeling_codegen import create_sinusoidal_positions


def built_table(config: Any) -> torch.Tensor:
    """Return the table that Hugging Face's class builds, float32 `[n_positions, rotary_dim]`, sines before cosines."""
    table: torch.Tensor = create_sinusoidal_positions(config.n_positions, config.rotary_dim)
    return table


def set_table(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Give a `CodeGenForCausalLM` of one block its table, as `from_pretrained(dtype=…)` does: float32 or wider."""
    table = built_table(model.config)
    owner = model.transformer.rotary_emb if hasattr(model.transformer, "rotary_emb") else model.transformer.h[0].attn
    owner.embed_positions = table.to(torch.promote_types(torch.float32, dtype)).to(device)


def share_table(owner: Any, other: Any) -> None:
    """Give another model the table of a model, if the model keeps it and not each of its blocks."""
    if hasattr(owner.transformer, "rotary_emb"):
        other.transformer.rotary_emb = owner.transformer.rotary_emb
