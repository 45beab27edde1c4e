"""Find the checkpoints of a plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cgverify.checkpoint.names import ABSENT, HUB_IDS, NAMED
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.common.errors import CgverifyError, UnknownNameError
from cgverify.common.records import Checkpoint

CheckpointRequest = tuple[str, str]
"""A model and its `--weights`, as the user typed them."""


@dataclass(frozen=True)
class FoundCheckpoints:
    """The checkpoints that were asked for."""

    checkpoints: dict[CheckpointRequest, Checkpoint] = field(default_factory=dict)
    sources: dict[CheckpointRequest, Source] = field(default_factory=dict)
    """The weights of those that are available."""


def find_checkpoints(asked: Iterable[CheckpointRequest]) -> FoundCheckpoints:
    """Find checkpoints. One that is unavailable is described with the reason.

    Raises:
        UnknownNameError: a name cannot be a checkpoint anywhere.
    """
    found = FoundCheckpoints()
    for model, weights in dict.fromkeys(asked):
        try:
            source = resolve(model, weights)
        except UnknownNameError:
            raise
        except CgverifyError as error:
            found.checkpoints[model, weights] = _describe_absent(model, weights, problem=str(error))
        else:
            found.sources[model, weights] = source
            found.checkpoints[model, weights] = describe_checkpoint(model, weights, source)
    return found


def find_checkpoint(model: str, weights: str) -> FoundCheckpoints:
    """Find a checkpoint that must be available; see `resolve` for what is raised if it is not."""
    source = resolve(model, weights)
    return FoundCheckpoints({(model, weights): describe_checkpoint(model, weights, source)}, {(model, weights): source})


def sketch(model: str, weights: str) -> Checkpoint:
    """Describe a checkpoint from its name or config, and download nothing.

    Raises:
        UnknownNameError: the name cannot be a checkpoint anywhere.
    """
    if _name_of_shape(model) in HUB_IDS:
        return _describe_absent(model, weights, digest=f"{model} {weights}")
    try:
        return describe_checkpoint(model, weights, resolve(model, "auto" if weights == "pretrained" else weights))
    except UnknownNameError:
        raise
    except CgverifyError as error:
        return _describe_absent(model, weights, problem=str(error))


def describe_checkpoint(model: str, weights: str, source: Source) -> Checkpoint:
    config = source.config
    names = ("rotary_dim", "n_positions", "n_embd", "vocab_size", "n_head", "n_inner")
    alike = {name: getattr(config, name) for name in names}
    return Checkpoint(
        name=_name_in_reports(model),
        asked=model,
        weights=weights,
        origin=source.origin,
        digest=source.digest,
        n_layers=config.n_layer,
        **alike,
    )


def _describe_absent(model: str, weights: str, *, digest: str = "", problem: str = "") -> Checkpoint:
    """Describe a checkpoint that is unavailable, with its shape if the name is known."""
    described = {"asked": model, "weights": weights, "digest": digest, "problem": problem}
    return NAMED.get(_name_of_shape(model), ABSENT).model_copy(update={"name": _name_in_reports(model), **described})


def _name_of_shape(model: str) -> str:
    """Return the name of a checkpoint that was given by its name or its hub id."""
    return next((name for name, hub_id in HUB_IDS.items() if hub_id == model), model)


def _name_in_reports(model: str) -> str:
    """Return the last part of a folder, or else the name."""
    return Path(model).resolve().name if Path(model).is_dir() else model
