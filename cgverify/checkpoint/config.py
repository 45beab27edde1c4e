"""A folder's config.json -> a `CodeGenConfig`, or a sentence that says why it is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CodeGenConfig

from cgverify.bridge.qkv_layout import PARTITIONS
from cgverify.checkpoint.names import NAMED
from cgverify.common.errors import CheckpointMissingError


def named_config(name: str) -> CodeGenConfig:
    """Return the config of a named checkpoint."""
    shape = NAMED[name]
    alike = {key: getattr(shape, key) for key in ("vocab_size", "n_positions", "n_embd", "n_head", "rotary_dim")}
    return CodeGenConfig(**alike, n_layer=shape.n_layers, n_ctx=shape.n_positions)


def read_config(folder: Path) -> CodeGenConfig:
    """Return the config of a folder.

    Raises:
        CheckpointMissingError: config.json is missing or damaged, or is not CodeGen's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointMissingError(f"{folder} has no config.json: it is not a Hugging Face checkpoint.")
    try:
        described: Any = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointMissingError(f"{path} is not JSON: {error}") from error
    if not isinstance(described, dict):
        raise CheckpointMissingError(f"{path} is not a model's config: it is not a JSON object.")
    if described.get("model_type") != "codegen":
        raise CheckpointMissingError(
            f"{folder} has a {described.get('model_type', 'nameless')} checkpoint: cgverify verifies CodeGen."
        )
    if "auto_map" in described:
        raise CheckpointMissingError(
            f"{folder} has its own code (auto_map), as CodeGen2 does, whose fused QKV weight has 8 partitions "
            "under CodeGen's name: cgverify does not guess its layout."
        )
    try:
        config = CodeGenConfig(**{name: value for name, value in described.items() if name != "model_type"})
    except Exception as error:  # transformers checks types with exceptions of several kinds
        reason = " ".join(str(error).split())
        raise CheckpointMissingError(f"{path} is not a CodeGen config: {reason}") from error
    _require_sound(config, str(folder))
    return config


def _require_sound(config: CodeGenConfig, where: str) -> None:
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
            f"{where} has the activation {config.activation_function}: cgverify knows only CodeGen's gelu_new."
        )
