"""Cut a plan to the checkpoints of the hub that there is room for, and fetch them, so that all else can be offline.

    python tools/hub_models.py cut configs/nightly.yaml --most-gb 4 --into tonight
    python tools/hub_models.py fetch tonight

`cut` writes `tonight/plan.yaml`, the plan without the checkpoints that find no room (the smallest come first), and
`tonight/models.txt`, a line `ID REVISION` per checkpoint: what a cache of weights is keyed by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
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
    places = [_place(entry, product) for product in products for entry in _models(product)]
    return list(dict.fromkeys(place for place in places if place is not None))


def without(plan: dict[str, Any], absent: Collection[str]) -> dict[str, Any]:
    """The plan without some of the hub's checkpoints, and without the rules that were about none but these."""

    def present(product: dict[str, Any]) -> list[Any]:
        return [entry for entry in _models(product) if _place(entry, {**plan, **product}) not in absent]

    products = [
        {**product, "models": present(product)} if "models" in product else product
        for product in (plan, *plan.get("include", ()))
    ]
    names = [_name(entry) for product in products for entry in _models(product)]
    rules = [
        rule
        for rule in plan.get("exclude", ())
        if "models" not in rule or any(fnmatchcase(name, glob) for glob in _models(rule) for name in names)
    ]
    further = [product for product in products[1:] if product.get("models", names)]
    cut = {**products[0], "include": further, "exclude": rules}
    return {key: value for key, value in cut.items() if value}


def _place(entry: str | dict[str, str], product: dict[str, Any]) -> str | None:
    """A checkpoint's id on the hub; None where it is a folder, ships with cgverify, or is to be random."""
    name, weights = _name(entry), product.get("weights", "auto")
    if not isinstance(entry, str):
        weights = entry.get("weights", weights)
    if weights.startswith("random") or Path(name).is_dir():
        return None
    return ARCHITECTURES[name].hub if name in ARCHITECTURES else name


def _name(entry: str | dict[str, str]) -> str:
    return entry if isinstance(entry, str) else entry["model"]


def _models(product: dict[str, Any]) -> list[Any]:
    models = product.get("models", [])
    return models if isinstance(models, list) else [models]


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


def cut(config: Path, most_gb: float, into: Path) -> None:
    plan = yaml.safe_load(config.read_text())
    found = [published(hub_id) for hub_id in hub_ids(plan)]
    taken = within(found, most_gb * 1e9)
    absent = [checkpoint for checkpoint in found if checkpoint not in taken]
    into.mkdir(parents=True, exist_ok=True)
    (into / "models.txt").write_text("".join(f"{each.hub_id} {each.revision}\n" for each in taken))
    cut_plan = without(plan, {checkpoint.hub_id for checkpoint in absent})
    (into / "plan.yaml").write_text(yaml.safe_dump(cut_plan, sort_keys=False))
    for checkpoint in absent:
        print(f"no room for {checkpoint.hub_id}: {checkpoint.size / 1e9:.1f} GB", file=sys.stderr)


def fetch(folder: Path) -> None:
    for line in (folder / "models.txt").read_text().splitlines():
        hub_id, revision = line.split()
        # By branch, since a cache without the branch's own entry is not found by name when offline.
        fetched = snapshot_download(hub_id, allow_patterns=["*.json", f"*{published(hub_id).suffix}"])
        if Path(fetched).name != revision:
            sys.exit(f"{hub_id} has moved on from {revision} since the plan was cut: start again.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("cut")
    cutting.add_argument("config", type=Path)
    cutting.add_argument("--most-gb", type=float, default=float("inf"))
    cutting.add_argument("--into", type=Path, required=True)
    commands.add_parser("fetch").add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "cut":
        cut(arguments.config, arguments.most_gb, arguments.into)
    else:
        fetch(arguments.folder)


if __name__ == "__main__":
    main()
