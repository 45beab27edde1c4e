"""Replace files so that each is complete at any moment: as it was before, or as it is now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PARTIAL = ".partial"
"""The suffix of a file that is still being written."""


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, which keeps its old content if that fails."""
    replace_files(path.parent, {path.name: content})


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write several files of a folder. If the disk has no room for all of them, all keep their old content.

    Raises:
        OSError: a file cannot be written.
    """
    partials = {name: folder / f"{name}{PARTIAL}" for name in contents}
    try:
        for name, partial in partials.items():
            partial.write_bytes(contents[name])
        for name, partial in partials.items():
            partial.replace(folder / name)
    except OSError:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
        raise
