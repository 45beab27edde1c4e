"""The plans that come with cgverify, by name: `smoke` is `configs/smoke.yaml`."""

from __future__ import annotations

from pathlib import Path

from cgverify.common.errors import UnknownNameError

PACKAGE = Path(__file__).parents[1]


def shipped_plans(package: Path = PACKAGE) -> dict[str, Path]:
    """Return the files of the plans by name, from the installed package or from the checkout around it."""
    folders = [package / "configs", package.parent / "configs"]
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def plan_file(given: Path) -> Path:
    """Return the file of a plan that is given as a path or by name. A file of the user has precedence.

    Raises:
        UnknownNameError: it is neither a file nor the name of a plan.
    """
    if given.exists() or given.suffix or len(given.parts) > 1:
        return given
    plans = shipped_plans()
    if str(given) not in plans:
        raise UnknownNameError("plan", str(given), plans)
    return plans[str(given)]


def purpose(path: Path) -> str:
    """Return the first paragraph of the comment at the top of a plan."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.removeprefix("#").strip():
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
