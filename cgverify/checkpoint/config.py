"""The configs of named checkpoints and of folders."""

from __future__ import annotations

from pathlib import Path

from transformers import CodeGenConfig

from cgverify.bridge import codegen_format
from cgverify.bridge.codegen_format import NotCodeGenError
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
        CheckpointMissingError: `cgverify.bridge.codegen_format.read_config` refuses it.
    """
    try:
        return codegen_format.read_config(folder)
    except NotCodeGenError as error:
        raise CheckpointMissingError(str(error)) from error
