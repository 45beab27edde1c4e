"""Which checkpoints of a plan are on the hub, at which revision; and fetch them, so that what follows can be offline.

    python tools/hub_models.py list configs/nightly.yaml --most-gb 8 > models.txt
    python tools/hub_models.py fetch models.txt

`list` writes a line per checkpoint, `ID REVISION`: what a cache of weights is keyed by. The smallest come first, until
the room is used up; what finds none is verified with random weights where the plan says `weights: auto`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import HfApi, snapshot_download

from cgverify.checkpoint.names import ARCHITECTURES

WEIGHTS = (".safetensors", ".bin")


class Published(NamedTuple):
    """A checkpoint as the hub has it now."""

    hub_id: str
    revision: str
    size: int
    """Bytes of its weights, in the one format that is fetched."""
    suffix: str
    """Of that format."""


def hub_ids(plan: dict[str, Any]) -> list[str]:
    """The checkpoints that a plan (see `cgverify sweep`) takes from the hub, each once, in its order."""
    products = [plan, *({**plan, **further} for further in plan.get("include", ()))]
    return list(dict.fromkeys(hub_id for product in products for hub_id in _of_product(product)))


def _of_product(product: dict[str, Any]) -> Iterator[str]:
    models = product["models"]
    for entry in models if isinstance(models, list) else [models]:
        described = {"model": entry} if isinstance(entry, str) else entry
        name, weights = described["model"], described.get("weights", product.get("weights", "auto"))
        hub_id = ARCHITECTURES[name].hub if name in ARCHITECTURES else name
        if hub_id is not None and not weights.startswith("random") and not Path(name).is_dir():
            yield hub_id


def published(hub_id: str) -> Published:
    """Ask the hub for a checkpoint's revision and size."""
    info = HfApi().model_info(hub_id, files_metadata=True)
    sizes = dict.fromkeys(WEIGHTS, 0)
    for file in info.siblings or ():
        for suffix in WEIGHTS:
            if file.rfilename.endswith(suffix):
                sizes[suffix] += file.size or 0
    suffix = next((suffix for suffix in WEIGHTS if sizes[suffix]), WEIGHTS[0])
    return Published(hub_id, str(info.sha), sizes[suffix], suffix)


def within(checkpoints: Iterable[Published], most_bytes: float) -> list[Published]:
    """The smallest of them, as many as have room together."""
    taken, total = [], 0
    for checkpoint in sorted(checkpoints, key=lambda each: (each.size, each.hub_id)):
        total += checkpoint.size
        if total > most_bytes:
            break
        taken.append(checkpoint)
    return taken


def show(config: Path, most_gb: float) -> None:
    found = [published(hub_id) for hub_id in hub_ids(yaml.safe_load(config.read_text()))]
    taken = within(found, most_gb * 1e9)
    for checkpoint in taken:
        print(checkpoint.hub_id, checkpoint.revision)
    for checkpoint in found:
        if checkpoint not in taken:
            print(f"no room for {checkpoint.hub_id}: {checkpoint.size / 1e9:.1f} GB", file=sys.stderr)


def fetch(listed: Path) -> None:
    for line in listed.read_text().splitlines():
        hub_id, revision = line.split()
        # By branch, since a cache without the branch's own entry is not found by name when offline.
        folder = snapshot_download(hub_id, allow_patterns=["*.json", f"*{published(hub_id).suffix}"])
        if Path(folder).name != revision:
            sys.exit(f"{hub_id} has moved on from {revision} since it was listed: start again.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list")
    listing.add_argument("config", type=Path)
    listing.add_argument("--most-gb", type=float, default=float("inf"))
    commands.add_parser("fetch").add_argument("listed", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "list":
        show(arguments.config, arguments.most_gb)
    else:
        fetch(arguments.listed)


if __name__ == "__main__":
    main()
