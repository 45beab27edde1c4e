"""Which files of a folder hold a checkpoint's weights. No torch: a folder is judged before anything heavy is imported.

| | one file | shards |
|---|---|---|
| safetensors | `model.safetensors` | `model.safetensors.index.json` |
| PyTorch's pickles | `pytorch_model.bin` | `pytorch_model.bin.index.json` |

The first that is there is taken, row by row, as `from_pretrained` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgverify.common.errors import WeightsError

STEMS = ("model.safetensors", "pytorch_model.bin")
PATTERNS = {stem: [stem, f"{stem}.index.json", stem.replace(".", "-*-of-*.")] for stem in STEMS}
"""Names of a format's files, by the name that its single file has."""


@dataclass(frozen=True)
class WeightFiles:
    """The files of one format that make up a checkpoint, all of them there."""

    paths: tuple[Path, ...]
    shard_of: dict[str, Path] | None = None
    """By a tensor's name, as an index tells; None where a single file holds all."""

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.paths)


def weight_files(folder: Path) -> WeightFiles:
    """The files from which a folder's weights are read.

    Raises:
        WeightsError: none, a shard that is missing, or an index that is damaged or names files elsewhere.
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
        described: Any = json.loads(index.read_text())
        shards = dict(described["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{index} is not an index of shards. Fetch it again.") from error
    for shard in shards.values():
        if not isinstance(shard, str) or shard in ("", ".", "..") or {"/", "\\"} & set(shard):
            raise WeightsError(
                f"{index} names the shard {shard!r}, which is no file beside it: it is not to be trusted."
            )
    files = {name: index.parent / shard for name, shard in shards.items()}
    for missing in sorted({path for path in files.values() if not path.is_file()}):
        raise WeightsError(f"The shard {missing} is missing. Fetch it again.")
    return WeightFiles(tuple(sorted(set(files.values()))), files)
