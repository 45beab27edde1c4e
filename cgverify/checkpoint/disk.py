"""Find checkpoints on this disk. Importing this needs no torch, so that `cgverify models` is quick."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from cgverify.checkpoint.files import weight_files
from cgverify.checkpoint.names import HUB_IDS, NAMED, NANO
from cgverify.common.errors import WeightsError


def folder_on_disk(model: str, weights: str) -> Path | None:
    """Return the folder of a model that the user typed, or None if `--weights` draws them or they must be downloaded.

    Args:
        model: a name, a folder, or a hub id; name or id may end in `@REVISION`.
        weights: `auto`, `pretrained` or `random`. Of a folder `random` needs the config.
    """
    if model not in NAMED and Path(model).is_dir():
        return Path(model)
    name, _, revision = model.partition("@")
    return None if name in NAMED and weights == "random" else on_this_disk(name, revision or None)


def on_this_disk(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a named checkpoint or hub id, or None if its weights must be downloaded.

    Args:
        revision: a branch, tag or commit of a hub id; None is its main branch.
    """
    if model == "codegen-nano":
        return NANO
    hub_id = hub_id_of(model)
    try:
        config = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    except HFValidationError:  # it does not have the form of a hub id
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    try:
        weight_files(folder)
    except WeightsError:  # an interrupted download
        return None
    return folder


def hub_id_of(model: str) -> str:
    """Return the hub id of a name, or the name itself if it has none."""
    return HUB_IDS.get(model, model)
