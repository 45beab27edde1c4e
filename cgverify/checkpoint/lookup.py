"""The checkpoints of a plan, as they are found here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cgverify.checkpoint.names import ARCHITECTURES, Architecture
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.common.errors import CgverifyError, UnknownNameError
from cgverify.common.records import Checkpoint

CheckpointRequest = tuple[str, str]
"""A model and its `--weights`, as the user has them."""


@dataclass(frozen=True)
class FoundCheckpoints:
    """What became of everything that was asked for."""

    checkpoints: dict[CheckpointRequest, Checkpoint] = field(default_factory=dict)
    sources: dict[CheckpointRequest, Source] = field(default_factory=dict)
    """Of those whose weights can be had."""


def find_checkpoints(asked: Iterable[CheckpointRequest]) -> FoundCheckpoints:
    """Each checkpoint, the ones that cannot be had with the reason.

    Raises:
        UnknownNameError: a name that can be no checkpoint anywhere.
    """
    found = FoundCheckpoints()
    for model, weights in dict.fromkeys(asked):
        try:
            source = resolve(model, weights)
        except UnknownNameError:
            raise
        except CgverifyError as error:
            found.checkpoints[model, weights] = _absent(model, weights, str(error))
        else:
            found.sources[model, weights] = source
            found.checkpoints[model, weights] = describe_checkpoint(model, weights, source)
    return found


def find_checkpoint(model: str, weights: str) -> FoundCheckpoints:
    """A checkpoint that must be had.

    Raises:
        CgverifyError: it cannot.
    """
    source = resolve(model, weights)
    return FoundCheckpoints({(model, weights): describe_checkpoint(model, weights, source)}, {(model, weights): source})


def sketch(model: str, weights: str) -> Checkpoint:
    """A checkpoint's shape, from its config alone; its weights are neither read nor fetched.

    Raises:
        UnknownNameError: a name that can be no checkpoint anywhere.
    """
    shape = architecture(model)
    if shape is None or shape.hub is None:
        try:
            return describe_checkpoint(model, weights, resolve(model, "auto" if weights == "pretrained" else weights))
        except UnknownNameError:
            raise
        except CgverifyError as error:
            return _absent(model, weights, str(error))
    return _absent(model, weights, "").model_copy(update={"digest": f"{model} {weights}"})


def describe_checkpoint(model: str, weights: str, source: Source) -> Checkpoint:
    """Describe an open checkpoint."""
    config = source.config
    return Checkpoint(
        name=name_of(model),
        asked=model,
        weights=weights,
        origin=source.origin,
        digest=source.digest,
        n_layers=config.n_layer,
        rotary_dim=config.rotary_dim,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        vocab_size=config.vocab_size,
    )


def _absent(model: str, weights: str, problem: str) -> Checkpoint:
    """A checkpoint that cannot be had: in the shape that its name stands for, or of none."""
    shape = architecture(model)
    return Checkpoint(
        name=name_of(model),
        asked=model,
        weights=weights,
        origin="not to be had",
        digest="",
        n_layers=shape.n_layer if shape else 0,
        rotary_dim=shape.rotary_dim if shape else 0,
        n_positions=shape.n_positions if shape else 1 << 30,
        n_embd=shape.n_embd if shape else 0,
        vocab_size=shape.vocab_size if shape else 0,
        problem=problem,
    )


def architecture(model: str) -> Architecture | None:
    """The shape that a name or one of its hub ids stands for."""
    by_hub = {shape.hub: shape for shape in ARCHITECTURES.values()}
    return ARCHITECTURES.get(model) or by_hub.get(model)


def name_of(model: str) -> str:
    """What a checkpoint is called in reports: a folder's last part, else the name as it is."""
    return Path(model).resolve().name if Path(model).is_dir() else model
