"""What a verification takes, by the size of the checkpoint: wall time and peak memory of whole processes.

    python tools/scale.py                                    # the table of docs/scale.md: about half an hour
    python tools/scale.py --job codegen-350M --job upstream  # some of its rows
    python tools/scale.py --job codegen-16B --options '--layers 0,33'  # two layers tell the memory of all

Weights are random and seeded, nothing is downloaded. Each row is a process of its own, imports included; its memory is
what the system counted for it (`ru_maxrss` of `os.wait4`). The rows with 10, 20 and 40 layers are codegen-350M made
deeper or less deep.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from cgverify.common.environment import machine, versions

UPSTREAM = """
import torch
from transformers import CodeGenForCausalLM
from transformer_lens.benchmarks.component_benchmark import benchmark_all_components
from cgverify.observe.candidate import find
from cgverify.checkpoint.config import named_config

config = named_config("codegen-350M")
config.architectures = ["CodeGenForCausalLM"]
reference = CodeGenForCausalLM(config).eval()
model = CodeGenForCausalLM(config).eval()
model.load_state_dict(reference.state_dict())
with torch.no_grad():
    print(benchmark_all_components(find("transformer_lens").boot(model), reference).message)
"""
"""TransformerLens's own check of all components: it boots its bridge, and compares the first output of each."""


@dataclass(frozen=True)
class Job:
    """A row of the table."""

    name: str
    options: tuple[str, ...] = ()
    model: str = ""
    """A name of `cgverify models`, if it is not the row's own."""
    layers: int | None = None
    """How many layers codegen-350M is made of."""

    def command(self, scratch: Path) -> list[str]:
        if self.name == "upstream":
            return [sys.executable, "-c", UPSTREAM]
        model = self.model or self.name
        if self.layers is not None:
            model = str(deepened(self.layers, scratch))
        # --weights random: what lies in a cache must not decide what is measured.
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


def deepened(layers: int, scratch: Path) -> Path:
    """A folder with the config of codegen-350M at another depth; random weights need no more."""
    from cgverify.checkpoint.config import named_config

    config = named_config("codegen-350M").to_dict() | {"n_layer": layers}
    folder = scratch / f"{layers}-layers"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measure(job: Job) -> str:
    """Run it, and describe it as a row."""
    with tempfile.TemporaryDirectory() as scratch, open(os.devnull, "w") as nowhere:
        command = job.command(Path(scratch))
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    options = " ".join(job.options)
    peak = usage.ru_maxrss * 1024 / 1e9
    busy = usage.ru_utime + usage.ru_stime
    return f"| {job.name} {options} | {seconds:.0f} s | {busy:.0f} s | {peak:.2f} GB | {process.returncode} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", choices=[job.name for job in JOBS])
    parser.add_argument("--options", default="", help="More options of all-components, as one text: '--layers 0,33'.")
    arguments = parser.parse_args()
    wanted = arguments.job
    described = machine()
    print(f"{described['processors']} processors of {described['processor']}, torch {versions()['torch']}", flush=True)
    print("| job | wall | CPU | peak memory | exit code |\n|---|---|---|---|---|", flush=True)
    for job in JOBS:
        if not wanted or job.name in wanted:
            print(measure(replace(job, options=(*job.options, *arguments.options.split()))), flush=True)


if __name__ == "__main__":
    main()
