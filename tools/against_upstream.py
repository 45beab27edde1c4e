"""Compare the main job with TransformerLens's own verifier: time, memory, and the number of tensors compared.

    python tools/against_upstream.py [--model codegen-350M] [--pairs 3]

One side is `cgverify all-components` (its default cases, all taps), the other is TransformerLens's boot with
`benchmark_all_components`. They run in turn, each as a whole process, on the same folder of weights, made once before.
TransformerLens needs a tokenizer next to the weights, so the folder gets one of single bytes.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import Cost, run_process

Measured = tuple[Cost, int]
"""What a process took, and how many tensors it compared."""


def run_cgverify(folder: Path, scratch: Path, number: int) -> Measured:
    run = scratch / f"run{number}"
    command = [sys.executable, "-m", "cgverify", "all-components", "--model", str(folder), "-q", "--output", str(run)]
    cost = run_process(command, scratch / "cgverify.txt")
    with (run / "summary.csv").open() as file:
        return cost, sum(int(row["taps"]) for row in csv.DictReader(file))


def run_upstream(folder: Path, scratch: Path) -> Measured:
    output = scratch / "upstream.txt"
    cost = run_process([sys.executable, __file__, "--upstream", str(folder)], output)
    return cost, json.loads(output.read_text().splitlines()[-1])["components"]


def upstream(folder: str) -> None:
    """Do what TransformerLens's benchmark suite does for components: boot, load Hugging Face's model, compare."""
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
    # It compares one output of each component, and nothing inside.
    print(json.dumps({"components": result.details["total_components"]}))


def write_folder(model: str, folder: Path) -> None:
    """Write seeded random weights of a named architecture, and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from write_checkpoint import write

    from cgverify.checkpoint.config import named_config

    write(named_config(model), folder, "safetensors", torch.float32, "100GB")
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), min(letters))
    PreTrainedTokenizerFast(tokenizer_object=tokens, **special).save_pretrained(folder)


def compare(model: str, pairs: int) -> None:
    rows: dict[str, list[float]] = {"wall": [], "cpu": [], "peak": [], "tensors": []}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / model
        # A separate process writes it, so that its memory is free again when the others are measured.
        subprocess.run([sys.executable, __file__, "--write", model, str(folder)], check=True)
        for number in range(pairs):
            pair = run_cgverify(folder, scratch, number), run_upstream(folder, scratch)
            for program, (cost, tensors) in zip(("cgverify", "transformer_lens"), pair, strict=True):
                print(
                    f"{program:<18}{cost.wall:6.1f} s wall {cost.cpu:6.1f} s cpu {cost.peak / 1e9:6.2f} GB "
                    f"{tensors:6} tensors",
                    flush=True,
                )
            (ours, our_tensors), (theirs, their_tensors) = pair
            for what in ("wall", "cpu", "peak"):
                rows[what].append(getattr(ours, what) / getattr(theirs, what))
            rows["tensors"].append(our_tensors / their_tensors)
    for what, ratios in rows.items():
        middle = statistics.median(ratios)
        print(f"{what:<8} cgverify / transformer_lens {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="codegen-350M")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--upstream", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        upstream(arguments.upstream)
    elif arguments.write:
        write_folder(arguments.write[0], Path(arguments.write[1]))
    else:
        compare(arguments.model, arguments.pairs)


if __name__ == "__main__":
    main()
