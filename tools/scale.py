"""Measure what a verification takes by the size of the checkpoint: wall time and peak memory of whole processes.

    python tools/scale.py                                    # the table of docs/scale.md: about half an hour
    python tools/scale.py --job codegen-350M --job upstream  # some of its rows
    python tools/scale.py --job codegen-16B --options '--layers 0,33'  # two layers need the memory of all

Weights are random and seeded, and nothing is downloaded. Each row is a process of its own, imports included. The rows
with 10, 20 and 40 layers are codegen-350M with that many layers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from measuring import run_process

from cgverify.common.numerics import machine, versions

UPSTREAM = """
import torch
from transformers import CodeGenForCausalLM
from transformer_lens.benchmarks.component_benchmark import benchmark_all_components
from cgverify.observe.candidate import find_candidate
from cgverify.checkpoint.config import named_config

config = named_config("codegen-350M")
config.architectures = ["CodeGenForCausalLM"]
reference = CodeGenForCausalLM(config).eval()
model = CodeGenForCausalLM(config).eval()
model.load_state_dict(reference.state_dict())
with torch.no_grad():
    print(benchmark_all_components(find_candidate("transformer_lens").boot(model), reference).message)
"""
"""TransformerLens's own check of all components, which boots its bridge and compares one output of each."""


@dataclass(frozen=True)
class Job:
    """A row of the table."""

    name: str
    options: tuple[str, ...] = ()
    model: str = ""
    """A name of `cgverify models`, if it differs from the row's name."""
    layers: int | None = None
    """The number of layers that codegen-350M gets."""

    def command(self, scratch: Path) -> list[str]:
        if self.name == "upstream":
            return [sys.executable, "-c", UPSTREAM]
        model = self.model or self.name
        if self.layers is not None:
            model = str(with_layers(self.layers, scratch))
        # Random weights, so that the content of a cache does not decide what is measured.
        program = [sys.executable, "-m", "cgverify", "all-components", "--weights", "random", "-q"]
        return [*program, "--model", model, *self.options, "--output", str(scratch / "run")]


JOBS = (
    Job("codegen-350M"),
    Job("upstream"),
    Job("codegen-2B"),
    Job("codegen-6B"),
    Job("codegen-16B", ("--case", "default")),
    Job("codegen-16B-bfloat16", ("--case", "default", "--dtype", "bfloat16"), model="codegen-16B"),
    *(Job(f"{layers}-layers", layers=layers) for layers in (10, 20, 40)),
)


def with_layers(layers: int, scratch: Path) -> Path:
    """Make a folder with the config of codegen-350M at another depth. Random weights need no other file."""
    from cgverify.checkpoint.config import named_config

    config = named_config("codegen-350M").to_dict() | {"n_layer": layers}
    folder = scratch / f"{layers}-layers"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measure(job: Job) -> str:
    """Run a job, and return it as a row."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        cost = run_process(job.command(scratch), scratch / "stdout.txt")
    options = " ".join(job.options)
    return f"| {job.name} {options} | {cost.wall:.0f} s | {cost.cpu:.0f} s | {cost.peak / 1e9:.2f} GB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=[job.name for job in JOBS])
    parser.add_argument("--options", default="", help="More options of all-components, as one text: '--layers 0,33'.")
    arguments = parser.parse_args()
    described = machine()
    print(f"{described['processors']} processors of {described['processor']}, torch {versions()['torch']}", flush=True)
    print("| job | wall | CPU | peak memory |\n|---|---|---|---|", flush=True)
    for job in JOBS:
        if not arguments.job or job.name in arguments.job:
            print(measure(replace(job, options=(*job.options, *arguments.options.split()))), flush=True)


if __name__ == "__main__":
    main()
