"""A folder's config.json -> a `CodeGenConfig`, or the sentence that says why it is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CodeGenConfig

from cgverify.bridge.qkv_layout import PARTITIONS
from cgverify.checkpoint.names import ARCHITECTURES, Architecture
from cgverify.common.errors import CheckpointMissingError


def named_config(name: str) -> CodeGenConfig:
    """Of a named architecture."""
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


def shape_of(config: CodeGenConfig) -> Architecture:
    """The sizes that decide what a checkpoint costs."""
    return Architecture(
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        rotary_dim=config.rotary_dim,
        hub=None,
        vocab_size=config.vocab_size,
        n_positions=config.n_positions,
    )


def read_config(folder: Path) -> CodeGenConfig:
    """Of a folder.

    Raises:
        CheckpointMissingError: no config.json, a damaged one, or one that is not CodeGen's.
    """
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
            f"{where} has the activation {config.activation_function}: cgverify knows CodeGen's gelu_new alone."
        )
