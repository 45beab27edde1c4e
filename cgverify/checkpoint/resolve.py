"""What the user typed (a name, a folder or a hub id) and `--weights` -> a source of tensors."""

from __future__ import annotations

from pathlib import Path

from cgverify.checkpoint.config import named_config, read_config
from cgverify.checkpoint.disk import folder_on_disk, hub_id_of
from cgverify.checkpoint.hub import download
from cgverify.checkpoint.names import NAMED, NANO
from cgverify.checkpoint.source import FolderWeights, RandomWeights, Source
from cgverify.common.errors import CheckpointMissingError, UnknownNameError

WEIGHTS = ("auto", "pretrained", "random")


def resolve(model: str, weights: str = "auto") -> Source:
    """Return the source of a checkpoint's tensors.

    Args:
        model: a name of `cgverify models`, a folder, or a hub id; name or id may end in `@REVISION`, a branch, tag or
            commit on the hub.
        weights: `auto` takes what is on this disk, else seeded random weights, and never downloads; `pretrained`
            downloads what is missing; `random` or `random:SEED` draws them.

    Raises:
        UsageError: nothing has that name, or the checkpoint is not CodeGen's.
        WeightsError: the weights cannot be read or fetched.
    """
    kind, _, digits = weights.partition(":")
    if kind not in WEIGHTS or (digits and (kind != "random" or not digits.isdecimal())):
        raise UnknownNameError("weights", weights, (*WEIGHTS, "random:SEED"))
    seed = int(digits or 0)
    folder = _folder(model, kind)
    if folder is None:
        return RandomWeights(named_config(model), seed)
    config = read_config(folder)
    if kind == "random":
        return RandomWeights(config, seed)
    return FolderWeights(folder, config, _origin(model, folder))


def _folder(model: str, weights: str) -> Path | None:
    """Return the folder of a checkpoint, or None for a named one that is not on this disk."""
    if not model:
        raise UnknownNameError("model", model, NAMED)
    if (found := folder_on_disk(model, weights)) is not None:
        return found
    name, at, revision = model.partition("@")
    named = name in NAMED
    if weights == "pretrained":
        return download(hub_id_of(name), revision or None)
    if named and not at:
        return None
    if "/" in model or Path(model).suffix or model.startswith(".") or named:
        raise CheckpointMissingError(
            f"There is no folder {model!r}, and no such checkpoint in the hub cache: give a folder with a config.json, "
            "or a hub id with --weights pretrained."
        )
    raise UnknownNameError("model", model, NAMED)


def _origin(model: str, folder: Path) -> str:
    if folder == NANO:
        return "codegen-nano (shipped)"
    if folder.parent.name == "snapshots":  # of the hub cache, whose folders are named by commits
        return f"{hub_id_of(model.partition('@')[0])}@{folder.name} (hub cache)"
    return str(folder)
