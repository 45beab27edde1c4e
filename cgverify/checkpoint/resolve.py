"""From what the user typed (a name, a folder, a hub id) and `--weights` to a source of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import CodeGenConfig

from cgverify.bridge.fused_qkv import PARTITIONS
from cgverify.checkpoint.disk import on_this_disk
from cgverify.checkpoint.names import ARCHITECTURES, NANO
from cgverify.checkpoint.source import FolderWeights, RandomWeights, Source
from cgverify.errors import CheckpointMissingError, UnknownNameError, UsageError, WeightsError

WEIGHTS = ("auto", "pretrained", "random")
PATTERNS = ["config.json", "model*.safetensors", "model.safetensors.index.json"]


def resolve(model: str, weights: str = "auto") -> Source:
    """The source of a checkpoint's tensors.

    Args:
        model: a name of `cgverify models`, a folder, or a hub id.
        weights: `auto` takes what is on this disk, else seeded random weights, and never downloads; `pretrained`
            downloads what is missing; `random` or `random:SEED` draws them.

    Raises:
        UsageError: nothing of that name, or a checkpoint that is not CodeGen's.
        WeightsError: weights that cannot be read or fetched.
    """
    kind, _, digits = weights.partition(":")
    if kind not in WEIGHTS or (digits and (kind != "random" or not digits.isdecimal())):
        raise UnknownNameError("--weights", weights, (*WEIGHTS, "random:SEED"))
    seed = int(digits or 0)
    folder = _folder(model, kind)
    if folder is None:
        return RandomWeights(_named_config(model), seed)
    config = _config(folder)
    if kind == "random":
        return RandomWeights(config, seed)
    return FolderWeights(folder, config, "codegen-nano (shipped)" if folder == NANO else str(folder))


def _folder(model: str, weights: str) -> Path | None:
    """The folder that holds the checkpoint; None for a named architecture without one."""
    named = model in ARCHITECTURES
    if not model:
        raise UnknownNameError("model", model, ARCHITECTURES)
    path = Path(model)
    if not named and path.is_dir():
        return path
    found = on_this_disk(model)
    if found is not None and not (named and weights == "random"):
        return found
    if weights == "pretrained":
        hub_id = ARCHITECTURES[model].hub if named else model
        return _download(hub_id or model)
    if named:
        return None
    if "/" in model or path.suffix or model.startswith("."):
        raise CheckpointMissingError(
            f"There is no folder {model!r}, and no such checkpoint in the hub cache: give a folder with a config.json, "
            "or a hub id with --weights pretrained."
        )
    raise UnknownNameError("model", model, ARCHITECTURES)


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise UsageError(f"{hub_id!r} is neither a folder nor a hub id: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"Cannot fetch {hub_id} from the hub: {reason}") from error


def _config(folder: Path) -> CodeGenConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointMissingError(f"{folder} has no config.json: it is not a Hugging Face checkpoint.")
    try:
        described: Any = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointMissingError(f"{path} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise CheckpointMissingError(f"{path} is not a model's config: it holds no JSON object.")
    if described.get("model_type") != "codegen":
        raise CheckpointMissingError(
            f"{folder} holds a {described.get('model_type', 'nameless')} checkpoint: cgverify verifies CodeGen."
        )
    if "auto_map" in described:
        raise CheckpointMissingError(
            f"{folder} brings code of its own (auto_map), as CodeGen2 does, whose fused QKV weight has 8 partitions "
            "under CodeGen's name: cgverify does not guess its layout."
        )
    try:
        config = CodeGenConfig(**{name: value for name, value in described.items() if name != "model_type"})
    except Exception as error:  # transformers checks types with exceptions of several kinds
        reason = " ".join(str(error).split())
        raise CheckpointMissingError(f"{path} is not a CodeGen config: {reason}") from error
    return _checked(config, str(folder))


def _checked(config: CodeGenConfig, where: str) -> CodeGenConfig:
    sizes = {name: getattr(config, name) for name in ("n_head", "n_embd", "n_layer", "vocab_size", "n_positions")}
    for name, size in sizes.items():
        if size < 1:
            raise CheckpointMissingError(f"{where} has {name} {size} in its config.json: it must be at least 1.")
    if config.n_head % PARTITIONS or config.n_embd % config.n_head:
        raise CheckpointMissingError(
            f"{where} has {config.n_head} heads and n_embd {config.n_embd}: the heads of a CodeGen model are a "
            f"multiple of {PARTITIONS} and divide n_embd."
        )
    if config.activation_function != "gelu_new":
        raise CheckpointMissingError(
            f"{where} has the activation {config.activation_function}: cgverify knows CodeGen's gelu_new alone."
        )
    return config


def _named_config(name: str) -> CodeGenConfig:
    shape = ARCHITECTURES[name]
    return CodeGenConfig(
        vocab_size=shape.vocab_size,
        n_positions=shape.n_positions,
        n_ctx=shape.n_positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        rotary_dim=shape.rotary_dim,
    )
