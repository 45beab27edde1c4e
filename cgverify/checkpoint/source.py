"""Where tensors come from: a protocol, with seeded random weights and Hugging Face folders behind it.

A source yields one tensor at a time in its stored dtype, so that no more of a checkpoint is in memory than is in use.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import CodeGenConfig

from cgverify.errors import WeightsError


class Source(Protocol):
    """A checkpoint's weights, under Hugging Face's names (`transformer.h.3.attn.qkv_proj.weight`)."""

    config: CodeGenConfig
    origin: str
    """For people: `random (seed 0)`, `codegen-nano (shipped)`, a folder."""
    digest: str
    """Of the content: equal digests mean equal tensors."""

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The tensor of that name in its stored dtype, in memory of its own.

        Raises:
            WeightsError: absent, unreadable or of another shape.
        """
        ...


class RandomWeights:
    """Weights drawn from (seed, tensor name) alone, so that any tensor can be made without the others.

    Matrices and biases are normal with the config's `initializer_range`, gains of layer norms lie around 1: unlike
    freshly initialised ones, no bias is 0 and no gain is 1, so leaving one out shows.
    """

    def __init__(self, config: CodeGenConfig, seed: int) -> None:
        self.config = config
        self.origin = f"random (seed {seed})"
        self._seed = seed
        described = json.dumps(["normal-1", seed, config.to_diff_dict()], sort_keys=True)
        self.digest = hashlib.sha256(described.encode()).hexdigest()[:16]

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        tensor = torch.empty(shape).normal_(0.0, self.config.initializer_range, generator=generator)
        is_gain = name.endswith(("ln_1.weight", "ln_f.weight"))
        return tensor.mul_(5).add_(1) if is_gain else tensor


class FolderWeights:
    """A folder as `save_pretrained` writes it: `model.safetensors`, or shards with an index."""

    def __init__(self, folder: Path, config: CodeGenConfig, origin: str) -> None:
        self.config = config
        self.origin = origin
        self._files = _files_by_tensor(folder)
        self.digest = _digest(folder, set(self._files.values()))

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        try:
            path = self._files[name]
        except KeyError:
            raise WeightsError(f"The checkpoint has no tensor {name}: it is incomplete, or not CodeGen's.") from None
        try:
            with safe_open(path, framework="pt") as file:
                # A copy: what safetensors returns lies in the mapped file, at any alignment, and alignment
                # decides which kernel runs.
                tensor: torch.Tensor = file.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"Cannot read {name} from {path}: {error}. Fetch the file again.") from error
        if not tensor.is_floating_point():
            raise WeightsError(f"{name} in {path} is stored as {tensor.dtype}: cgverify reads floating-point weights.")
        if tensor.shape != shape:
            raise WeightsError(
                f"{name} in {path} has shape {list(tensor.shape)} where config.json wants {list(shape)}: the weights "
                "and the config are of different models."
            )
        return tensor


def _files_by_tensor(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        try:
            shards: dict[str, str] = json.loads(index.read_text())["weight_map"]
            files = {name: folder / shard for name, shard in shards.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(f"{index} is not an index of shards. Fetch it again.") from error
        for missing in sorted({path for path in files.values() if not path.is_file()}):
            raise WeightsError(f"The shard {missing} is missing. Fetch it again.")
        return files
    if not single.is_file():
        raise WeightsError(f"{folder} has a config.json but no model.safetensors: fetch the weights as well.")
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"Cannot read {single}: {error}. Fetch the file again.") from error


def _digest(folder: Path, files: set[Path]) -> str:
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
