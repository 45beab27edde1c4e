"""From what the user typed (a name, a folder, a hub id) and `--weights` to a source of tensors."""

from __future__ import annotations

from pathlib import Path

from cgverify.checkpoint.config import named_config, read_config
from cgverify.checkpoint.disk import hub_id_of, on_this_disk
from cgverify.checkpoint.hub import download
from cgverify.checkpoint.names import ARCHITECTURES, NANO
from cgverify.checkpoint.source import FolderWeights, RandomWeights, Source
from cgverify.common.errors import CheckpointMissingError, UnknownNameError

WEIGHTS = ("auto", "pretrained", "random")


def resolve(model: str, weights: str = "auto") -> Source:
    """The source of a checkpoint's tensors.

    Args:
        model: a name of `cgverify models`, a folder, or a hub id; name or id may end in `@REVISION`, a branch, tag or
            commit on the hub.
        weights: `auto` takes what is on this disk, else seeded random weights, and never downloads; `pretrained`
            downloads what is missing; `random` or `random:SEED` draws them.

    Raises:
        UsageError: nothing of that name, or a checkpoint that is not CodeGen's.
        WeightsError: weights that cannot be read or fetched.
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
    """The folder that holds the checkpoint; None for a named architecture without one."""
    if not model:
        raise UnknownNameError("model", model, ARCHITECTURES)
    path = Path(model)
    if model not in ARCHITECTURES and path.is_dir():
        return path
    name, at, revision = model.partition("@")
    named = name in ARCHITECTURES
    found = on_this_disk(name, revision or None)
    if found is not None and not (named and weights == "random"):
        return found
    if weights == "pretrained":
        return download(hub_id_of(name), revision or None)
    if named and not at:
        return None
    if "/" in model or path.suffix or model.startswith(".") or named:
        raise CheckpointMissingError(
            f"There is no folder {model!r}, and no such checkpoint in the hub cache: give a folder with a config.json, "
            "or a hub id with --weights pretrained."
        )
    raise UnknownNameError("model", model, ARCHITECTURES)


def _origin(model: str, folder: Path) -> str:
    if folder == NANO:
        return "codegen-nano (shipped)"
    if folder.parent.name == "snapshots":  # of the hub cache, whose folders are named by commits
        return f"{hub_id_of(model.partition('@')[0])}@{folder.name} (hub cache)"
    return str(folder)
