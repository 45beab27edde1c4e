"""Which checkpoints are on this disk already. No torch, so that `cgverify models` is quick."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from cgverify.checkpoint.names import ARCHITECTURES, NANO


def on_this_disk(model: str) -> Path | None:
    """The folder of a named checkpoint or hub id if its weights need no download."""
    if model == "codegen-nano":
        return NANO
    architecture = ARCHITECTURES.get(model)
    hub_id = architecture.hub if architecture else model
    try:
        config = try_to_load_from_cache(hub_id, "config.json") if hub_id else None
    except HFValidationError:  # not even the form of a hub id
        return None
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and any(folder.glob("model*.safetensors")) else None
