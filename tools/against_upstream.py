"""The main job beside TransformerLens's own verifier: time, memory, and how many tensors each compared.

`cgverify all-components` (three cases, all taps), and TransformerLens's boot with `benchmark_all_components`, each as a
whole process, in alternation, on the same weights: a folder as `save_pretrained` writes it, made once before.
TransformerLens needs a tokenizer beside the weights, so the folder gets one of single bytes.

    python tools/against_upstream.py [--model codegen-350M] [--pairs 3]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of one whole process."""

    wall: float
    cpu: float
    peak: int
    """Bytes of resident memory at the height."""
    tensors: int
    """How many were compared."""

    def __str__(self) -> str:
        return f"{self.wall:6.1f} s wall {self.cpu:6.1f} s cpu {self.peak / 1e9:6.2f} GB {self.tensors:6} tensors"


def measured(command: Sequence[str], output: Path) -> tuple[float, float, int]:
    """Wall and processor seconds and peak memory of a command. Exits where the command fails."""
    started = time.perf_counter()
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{' '.join(command)} ended with {code}:\n{output.read_text()[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss


def ours(folder: Path, scratch: Path, number: int) -> Cost:
    run = scratch / f"run{number}"
    command = [sys.executable, "-m", "cgverify", "all-components", "--model", str(folder), "-q", "--output", str(run)]
    wall, cpu, peak = measured(command, scratch / "ours.txt")
    with (run / "summary.csv").open() as file:
        return Cost(wall, cpu, peak, sum(int(row["taps"]) for row in csv.DictReader(file)))


def theirs(folder: Path, scratch: Path) -> Cost:
    command = [sys.executable, __file__, "--upstream", str(folder)]
    output = scratch / "theirs.txt"
    wall, cpu, peak = measured(command, output)
    return Cost(wall, cpu, peak, json.loads(output.read_text().splitlines()[-1])["components"])


def run_upstream(folder: str) -> None:
    """What its benchmark suite does for its components: boot, load Hugging Face's model beside it, compare."""
    import torch
    from transformer_lens.benchmarks.component_benchmark import benchmark_all_components
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        result = benchmark_all_components(bridge, reference)
    if not result.passed:
        sys.exit(str(result.message))
    # One output of each is compared, and nothing within.
    print(json.dumps({"components": result.details["total_components"]}))


def write_checkpoint(model: str, folder: Path) -> None:
    """Seeded random weights of a named architecture, and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from cgverify.bench.models import load_model
    from cgverify.checkpoint.resolve import resolve
    from cgverify.checkpoint.window import ModelVariant

    source = resolve(model)
    setting = ModelVariant(torch.float32, torch.device("cpu"), source.config.rotary_dim)
    load_model(source, setting, "model").save_pretrained(folder)
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), min(letters))
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codegen-350M")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        run_upstream(arguments.upstream)
        return
    if arguments.write:
        write_checkpoint(arguments.write[0], Path(arguments.write[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / arguments.model
        # Written by a process of its own, which leaves its memory to those that are measured.
        subprocess.run([sys.executable, __file__, "--write", arguments.model, str(folder)], check=True)
        pairs = []
        for number in range(arguments.pairs):
            pair = ours(folder, scratch, number), theirs(folder, scratch)
            for who, cost in zip(("cgverify", "transformer_lens"), pair, strict=True):
                print(f"{who:<18}{cost}", flush=True)
            pairs.append(pair)
    for what in ("wall", "cpu", "peak", "tensors"):
        ratios = sorted(getattr(one, what) / getattr(two, what) for one, two in pairs)
        middle = statistics.median(ratios)
        print(f"{what:<8} cgverify / transformer_lens {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
