"""Write a CodeGen checkpoint with seeded random weights, in shards, with one shard in memory at a time.

    python tools/write_checkpoint.py codegen-2B /tmp/two --layers 10 --format bin --shard-size 500MB

The same name and depth give the same weights in either format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import CodeGenForCausalLM

from cgverify.checkpoint.config import named_config
from cgverify.checkpoint.files import STEMS
from cgverify.checkpoint.source import RandomWeights

SAVE: dict[str, Callable[[Any, Path], None]] = {"safetensors": save_file, "bin": torch.save}


def write(config: Any, folder: Path, format: str, dtype: torch.dtype, shard_size: str) -> None:
    """Write a folder as the hub has them: config.json, shards and their index.

    Args:
        config: a `CodeGenConfig`.
        format: `safetensors` or `bin`.
        shard_size: the largest size of a file, such as `500MB`.
    """
    source = RandomWeights(config, seed=0)
    with torch.device("meta"):
        shapes = CodeGenForCausalLM(config).to(dtype).state_dict()
    stem, suffix = next(stem for stem in STEMS if stem.endswith(format)).split(".")
    plan = split_torch_state_dict_into_shards(
        shapes, filename_pattern=f"{stem}{{suffix}}.{suffix}", max_shard_size=shard_size
    )
    folder.mkdir(parents=True)
    for file, names in plan.filename_to_tensors.items():
        SAVE[format]({name: source.read(name, shapes[name].shape).to(dtype) for name in names}, folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    config.dtype = dtype
    config.architectures = ["CodeGenForCausalLM"]
    config.save_pretrained(folder)


def main(
    model: str,
    folder: Path,
    layers: int | None = None,
    format: str = "safetensors",
    dtype: str = "float16",
    shard_size: str = "500MB",
) -> None:
    config = named_config(model)
    config.n_layer = layers or config.n_layer
    write(config, folder, format, getattr(torch, dtype), shard_size)


if __name__ == "__main__":
    typer.run(main)
