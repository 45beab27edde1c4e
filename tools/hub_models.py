"""Cut a plan to the hub checkpoints that there is room for, and fetch them, so that every later step can be offline.

    python tools/hub_models.py cut configs/nightly.yaml --most-gb 4 --into tonight
    python tools/hub_models.py fetch tonight

`cut` writes `tonight/plan.yaml`, the plan without the checkpoints that do not fit (the smallest are taken first), and
`tonight/models.txt`, with a line `ID REVISION` per checkpoint, which is the key for a cache of weights.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import typer
import yaml
from huggingface_hub import HfApi, snapshot_download

from cgverify.checkpoint.names import HUB_IDS

WEIGHTS = (".safetensors", ".bin")
app = typer.Typer(help=(__doc__ or "").splitlines()[0])


class Published(NamedTuple):
    """A checkpoint as the hub has it now."""

    hub_id: str
    revision: str
    size: int
    """Bytes of its weights, in the one format that is fetched."""
    suffix: str
    """The file name's end in that format."""


def hub_ids(plan: dict[str, Any]) -> list[str]:
    """Return the checkpoints that a plan of `cgverify sweep` takes from the hub, each once, in the plan's order."""
    products = [plan, *({**plan, **further} for further in plan.get("include", ()))]
    ids = [_hub_id(entry, product) for product in products for entry in _models(product)]
    return list(dict.fromkeys(one for one in ids if one is not None))


def without(plan: dict[str, Any], absent: Collection[str]) -> dict[str, Any]:
    """Return the plan without some of its hub checkpoints, and without the rules that concern only these."""

    def present(product: dict[str, Any]) -> list[Any]:
        return [entry for entry in _models(product) if _hub_id(entry, {**plan, **product}) not in absent]

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


def _hub_id(entry: str | dict[str, str], product: dict[str, Any]) -> str | None:
    """Return a checkpoint's id on the hub; None if it is a folder, ships with cgverify, or gets random weights."""
    name, weights = _name(entry), product.get("weights", "auto")
    if not isinstance(entry, str):
        weights = entry.get("weights", weights)
    if weights.startswith("random") or Path(name).is_dir():
        return None
    return None if name == "codegen-nano" else HUB_IDS.get(name, name)


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
    """Return the smallest checkpoints, as many as fit together."""
    taken, total = [], 0
    for checkpoint in sorted(checkpoints, key=lambda each: (each.size, each.hub_id)):
        total += checkpoint.size
        if total > most_bytes:
            break
        taken.append(checkpoint)
    return taken


@app.command()
def cut(config: Path, into: Path = Path("tonight"), most_gb: float = float("inf")) -> None:
    """Write the plan without the checkpoints that do not fit, and the list of the others."""
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


@app.command()
def fetch(folder: Path) -> None:
    """Fetch the checkpoints that `cut` listed."""
    for line in (folder / "models.txt").read_text().splitlines():
        hub_id, revision = line.split()
        # By branch: offline, a cache without an entry for the branch is not found by name.
        fetched = snapshot_download(hub_id, allow_patterns=["*.json", f"*{published(hub_id).suffix}"])
        if Path(fetched).name != revision:
            sys.exit(f"{hub_id} has changed since the plan was cut at {revision}: start again.")


if __name__ == "__main__":
    app()
