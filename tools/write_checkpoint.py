"""Write a CodeGen checkpoint with seeded random weights, in shards, holding no more than one of them in memory.

    python tools/write_checkpoint.py codegen-2B /tmp/two --layers 10 --format bin --shard-size 500MB

The same name and depth are the same weights in either format.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import CodeGenForCausalLM

from cgverify.checkpoint.config import named_config
from cgverify.checkpoint.files import STEMS
from cgverify.checkpoint.names import ARCHITECTURES
from cgverify.checkpoint.source import RandomWeights

SAVE = {"safetensors": save_file, "bin": torch.save}


def write(config: Any, folder: Path, format: str, dtype: torch.dtype, shard_size: str) -> None:
    """A folder as the hub has them: config.json, shards and their index.

    Args:
        config: a `CodeGenConfig`.
        format: `safetensors` or `bin`.
        shard_size: the most that a file holds, `500MB`.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(ARCHITECTURES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--format", choices=list(SAVE), default="safetensors")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16")
    parser.add_argument("--shard-size", default="500MB")
    arguments = parser.parse_args()
    config = named_config(arguments.model)
    config.n_layer = arguments.layers or config.n_layer
    dtype = getattr(torch, arguments.dtype)
    write(config, arguments.folder, arguments.format, dtype, arguments.shard_size)


if __name__ == "__main__":
    main()
