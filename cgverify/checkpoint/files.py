"""Find the files of a folder that contain a checkpoint's weights. This needs no torch.

| | one file | shards |
|---|---|---|
| safetensors | `model.safetensors` | `model.safetensors.index.json` |
| PyTorch's pickles | `pytorch_model.bin` | `pytorch_model.bin.index.json` |

The first that exists is read, row by row, as `from_pretrained` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgverify.common.errors import WeightsError

STEMS = ("model.safetensors", "pytorch_model.bin")
PATTERNS = {stem: [stem, f"{stem}.index.json", stem.replace(".", "-*-of-*.")] for stem in STEMS}
"""The names of a format's files, by the name of its single file."""


@dataclass(frozen=True)
class WeightFiles:
    """The files of one format that make up a checkpoint. All of them exist."""

    paths: tuple[Path, ...]
    shard_of: dict[str, Path] | None = None
    """The file of each tensor, as an index says; None if a single file has all of them."""

    @property
    def size(self) -> int:
        """The bytes on the disk."""
        return sum(path.stat().st_size for path in self.paths)


def weight_files(folder: Path) -> WeightFiles:
    """Return the files from which a folder's weights are read.

    Raises:
        WeightsError: there are none, a shard is missing, or an index is damaged or names files elsewhere.
    """
    for stem in STEMS:
        single, index = folder / stem, folder / f"{stem}.index.json"
        if single.is_file():
            return WeightFiles((single,))
        if index.is_file():
            return _shards(index)
    raise WeightsError(
        f"{folder} has a config.json but no weights ({' or '.join(STEMS)}, whole or in shards): fetch them as well."
    )


def _shards(index: Path) -> WeightFiles:
    try:
        described: Any = json.loads(index.read_text(encoding="utf-8"))
        shards = dict(described["weight_map"])
        if not shards:
            raise ValueError("it names no tensor")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError(f"{index} is not an index of shards. Fetch it again.") from error
    for shard in shards.values():
        if not isinstance(shard, str) or shard in ("", ".", "..") or {"/", "\\"} & set(shard):
            raise WeightsError(
                f"{index} names the shard {shard!r}, which is not a file in its folder: do not trust it."
            )
    files = {name: index.parent / shard for name, shard in shards.items()}
    for missing in sorted({path for path in files.values() if not path.is_file()}):
        raise WeightsError(f"The shard {missing} is missing. Fetch it again.")
    return WeightFiles(tuple(sorted(set(files.values()))), files)
