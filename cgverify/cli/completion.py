"""What the shell completes: names from the tables of the program, and folders on the disk. This imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cgverify.checkpoint.names import HUB_IDS, NAMED
from cgverify.plan.shipped_plans import shipped_plans

Completion = Callable[[str], list[str]]


def names(known: Iterable[str]) -> Completion:
    """Return the completion of one of the known names, or of the last in a list with commas: `float32,bf`."""
    known = list(known)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [before + comma + name for name in known if name.startswith(last) and name not in given]

    return complete


def models(incomplete: str) -> list[str]:
    """Complete named checkpoints, their hub ids once an owner is typed, and folders of checkpoints."""
    known = [*NAMED, *(set(HUB_IDS.values()) if "/" in incomplete else ())]
    return sorted(name for name in known if name.startswith(incomplete)) + _folders(incomplete, "config.json")


def plans(incomplete: str) -> list[str]:
    """Complete the plans that come with cgverify, and files in YAML."""
    files = [path for path in _beginning_with(incomplete) if path.suffix in (".yaml", ".yml")]
    return [name for name in shipped_plans() if name.startswith(incomplete)] + [path.as_posix() for path in files]


def run_folders(incomplete: str) -> list[str]:
    """Complete folders of runs: below what is typed, and those in `reports/`."""
    return sorted({*_folders(incomplete, "run.json"), *_folders(incomplete or "reports/", "run.json")})


def _folders(incomplete: str, file: str) -> list[str]:
    """Return the folders that begin with what is typed and have a file of that name, or a folder that has."""
    found = [path for path in _beginning_with(incomplete) if path.is_dir()]
    whole = [path for path in found if (path / file).is_file()]
    around = [f"{path.as_posix()}/" for path in found if path not in whole and any(path.glob(f"*/{file}"))]
    return [path.as_posix() for path in whole] + around


def _beginning_with(incomplete: str) -> list[Path]:
    folder = Path(incomplete if incomplete.endswith("/") else Path(incomplete).parent)
    try:
        return sorted(path for path in folder.iterdir() if path.as_posix().startswith(incomplete.removeprefix("./")))
    except OSError:  # no such folder, or one that may not be read
        return []
