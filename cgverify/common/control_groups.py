"""Control groups of this process: limits of a container, which /proc/meminfo and the affinity do not show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def control_groups(controller: str, proc: Path, groups: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version (1 or 2) and the folder of each group from this process's own up to the root.

    A folder may be missing: inside a container only the root may exist.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own = PurePosixPath(path).relative_to("/")
        if controllers == "":
            yield from ((2, groups / group) for group in (own, *own.parents))
        elif controller in controllers.split(","):
            yield from ((1, groups / controller / group) for group in (own, *own.parents))
