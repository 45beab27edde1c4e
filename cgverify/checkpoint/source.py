"""The sources of tensors: seeded random weights, and folders of Hugging Face.

A source reads one tensor at a time in its stored dtype, so that only the part of a checkpoint in use is in memory.
"""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from transformers import CodeGenConfig

from cgverify.bridge.codegen_format import TIED, NotCodeGenError, require_tensors
from cgverify.checkpoint.digests import digests_of
from cgverify.checkpoint.files import WeightFiles, weight_files
from cgverify.checkpoint.formats import TensorFile, open_tensors
from cgverify.common.errors import WeightsError


class Source(Protocol):
    """A checkpoint's weights, under Hugging Face's names (`transformer.h.3.attn.qkv_proj.weight`)."""

    config: CodeGenConfig
    origin: str
    """A description for a reader: `random (seed 0)`, `codegen-nano (shipped)`, a folder."""
    digest: str
    """The digest of the content: equal digests mean equal tensors."""
    stored_width: int
    """The bytes of a weight as it is stored, according to the config."""

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return a tensor in its stored dtype, in its own memory.

        Raises:
            WeightsError: the tensor is missing, unreadable, or has another shape.
        """
        ...


class RandomWeights:
    """Weights that depend only on the seed and the tensor's name, so that any tensor can be drawn without the others.

    Matrices and biases are normal with the config's `initializer_range`, and gains of layer norms are near 1. Unlike in
    a newly initialised model, no bias is 0 and no gain is 1, so that leaving one out has an effect.
    """

    CHUNK = 1 << 22
    """The numbers that are drawn from one generator. Each chunk has its own, so that threads share the work and the
    result does not depend on their number."""

    def __init__(self, config: CodeGenConfig, seed: int) -> None:
        self.config = config
        self.origin = f"random (seed {seed})"
        self.stored_width = torch.float32.itemsize
        self._seed = seed
        described = json.dumps(["normal-2", seed, config.to_diff_dict()], sort_keys=True)
        self.digest = hashlib.sha256(described.encode()).hexdigest()[:16]

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        tensor = torch.empty(shape)
        chunks = list(enumerate(tensor.view(-1).split(self.CHUNK)))
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda chunk: self._draw(name, *chunk), chunks))
        is_gain = name.endswith(("ln_1.weight", "ln_f.weight"))
        return tensor.mul_(5).add_(1) if is_gain else tensor

    def _draw(self, name: str, number: int, chunk: torch.Tensor) -> None:
        key = f"{self._seed}/{name}" + (f"/{number}" if number else "")
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        chunk.normal_(0.0, self.config.initializer_range, generator=generator)


class FolderWeights:
    """A folder as `save_pretrained` writes it, now or in older versions: safetensors or `.bin`, one file or shards.

    Raises:
        WeightsError: a file is missing, damaged or unsafe, or the tensors are not exactly CodeGen's.
    """

    def __init__(self, folder: Path, config: CodeGenConfig, origin: str) -> None:
        self.config = config
        self.origin = origin
        self.stored_width = (config.dtype or torch.float32).itemsize
        files = weight_files(folder)
        self._open: TensorFile = open_tensors(files.paths[0])
        self._choosing = threading.Lock()
        self._shards = files.shard_of or dict.fromkeys(self._open.names, files.paths[0])
        self._tied = TIED if config.tie_word_embeddings else {}
        try:
            require_tensors(self._shards, config, str(folder))
        except NotCodeGenError as error:
            raise WeightsError(str(error)) from error
        self.digest = _digest(folder, files)

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        stored = self._stored_name(name)
        if stored is None:
            raise WeightsError(f"The checkpoint has no tensor {name}: it is incomplete, or not CodeGen's.")
        path = self._shards[stored]
        with self._choosing:  # a view's tensors are read side by side
            if self._open.path != path:  # one file at a time: mapped pages count as memory
                self._open = open_tensors(path)
            file = self._open
        return file.read(stored, shape)

    def _stored_name(self, name: str) -> str | None:
        return next((each for each in (name, self._tied.get(name)) if each in self._shards), None)


def _digest(folder: Path, files: WeightFiles) -> str:
    """Return the digest of the bytes of the config and of every file of weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    try:
        digest.update(b"".join(digests_of(files.paths)))
    except OSError as error:
        raise WeightsError(f"Cannot read {error.filename}: {error.strerror}.") from error
    return digest.hexdigest()[:16]
