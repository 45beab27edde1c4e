"""Time the attention bridges beside Hugging Face's attention, in pairs.

Candidate and reference run alternately on the same inputs in one process, so that drift of the machine falls on both.
What is printed is the median of the paired ratios with its quartiles, and whether outputs and patterns have the same
bits. Peak memory is that of a fresh process each.

    python tools/time_attention.py [--bridge cgverify --bridge transformer_lens] [--pairs 30] [--scenario decode]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from cgverify.candidate import find
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.window import Setting, Window

SHAPES = ((2, 8), (2, 128), (1, 512), (1, 1024), (1, 2048))
Run = Callable[[], Any]


@dataclass(frozen=True)
class Scenario:
    """What is run, at which shapes (batch × tokens), under which autograd mode."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    mode: Callable[[], contextlib.AbstractContextManager[Any]] = torch.inference_mode
    dtype: torch.dtype = torch.float32
    cached: int = 0
    listening: bool = False
    training: bool = False


SCENARIOS = [
    Scenario("inference_mode", SHAPES),
    Scenario("no_grad", SHAPES, torch.no_grad),
    Scenario("decode", ((1, 1),), cached=1000),
    Scenario("all hooks cached", SHAPES, listening=True),
    Scenario("bfloat16", SHAPES, dtype=torch.bfloat16),
    Scenario("training", SHAPES[:4], torch.enable_grad, training=True),
]


def attentions(model: str, dtype: torch.dtype, bridges: list[str]) -> tuple[Any, dict[str, Any]]:
    """Layer 0 of Hugging Face and of each bridge."""
    source = resolve(model)
    window = Window(source)
    window.show(0)
    setting = Setting(dtype, torch.device("cpu"), source.config.rotary_dim)
    candidates = {name: find(name).boot(window.model(setting)).blocks[0].attn for name in bridges}
    return window.model(setting).transformer.h[0].attn, candidates


@contextlib.contextmanager
def all_hooks_cached(attention: Any) -> Iterator[None]:
    """Keep every activation, as `run_with_cache` does."""
    points = [module for _, module in attention.named_modules() if type(module).__name__ == "HookPoint"]
    kept: dict[Any, torch.Tensor] = {}
    for point in points:
        point.add_hook(lambda tensor, hook: kept.update({hook: tensor}))
    try:
        yield
    finally:
        for point in points:
            point.remove_hooks()


def runner(attention: Any, inputs: dict[str, Any], scenario: Scenario) -> Run:
    """One forward (and backward), from the same state each time."""
    if scenario.cached:
        given = {name: value for name, value in inputs.items() if name != "key"}

        def decode() -> Any:
            cache = DynamicCache()
            cache.update(inputs["key"], inputs["key"], 0)
            return attention(**given, layer_past=cache)

        return decode
    if scenario.training:

        def step() -> Any:
            hidden = inputs["hidden_states"].clone().requires_grad_()
            output = attention(**{**inputs, "hidden_states": hidden})
            output[0].sum().backward()
            return output

        return step
    return lambda: attention(**inputs)


def paired(ours: Run, theirs: Run, pairs: int) -> tuple[list[float], bool]:
    """Candidate's time over the reference's, pair by pair, the order of the two alternating."""

    def seconds(run: Run) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    same = all(torch.equal(a, b) for a, b in zip(ours(), theirs(), strict=True))
    seconds(ours), seconds(theirs)
    ratios = []
    for pair in range(pairs):
        first, second = (ours, theirs) if pair % 2 else (theirs, ours)
        one, two = seconds(first), seconds(second)
        ratios.append(one / two if pair % 2 else two / one)
    return ratios, same


def measure(scenario: Scenario, arguments: argparse.Namespace) -> None:
    reference, candidates = attentions(arguments.model, scenario.dtype, arguments.bridge)
    for name, candidate in candidates.items():
        if scenario.training:
            for side in (reference, candidate):
                side.train().requires_grad_(True)
        for batch, seq in scenario.shapes:
            inputs = candidate.get_random_inputs(batch, seq, dtype=scenario.dtype)
            if scenario.cached:
                inputs["position_ids"] = inputs["position_ids"] + scenario.cached
                inputs["attention_mask"] = torch.zeros(batch, 1, seq, scenario.cached + seq, dtype=scenario.dtype)
                heads, width = reference.num_attention_heads, reference.head_dim
                inputs["key"] = torch.randn(batch, heads, scenario.cached, width).to(scenario.dtype)
            listening = all_hooks_cached(candidate) if scenario.listening else contextlib.nullcontext()
            pairs = arguments.pairs * (5 if seq < 100 else 1)
            try:
                with listening, scenario.mode():
                    ratios, same = paired(
                        runner(candidate, inputs, scenario), runner(reference, inputs, scenario), pairs
                    )
            except RuntimeError as error:  # upstream's in half precision
                print(f"{scenario.name:<18}{name:<18}{f'{batch}x{seq}':>8}  {str(error).splitlines()[0]}", flush=True)
                continue
            low, middle, high = statistics.quantiles(ratios, n=4)
            shape, quartiles = f"{batch}x{seq}", f"{low:.2f} to {high:.2f}"
            print(f"{scenario.name:<18}{name:<18}{shape:>8}{middle:>8.2f}{quartiles:>16}  {same}", flush=True)


def peak(name: str, model: str, batch: int, seq: int) -> float:
    """Peak memory of one forward above what stood before it, in MB. Linux alone lets a process forget its peak."""
    reference, candidates = attentions(model, torch.float32, [] if name == "Hugging Face" else [name])
    attention = candidates.get(name, reference)
    inputs = {
        "hidden_states": torch.randn(batch, seq, reference.embed_dim),
        "position_ids": torch.arange(seq)[None],
        "attention_mask": torch.zeros(batch, 1, seq, seq),
    }
    with torch.inference_mode():
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        attention(**inputs)
    return (_status("VmHWM") - before) / 1000


def _status(field: str) -> int:
    """A line of this process's status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bridge", action="append")
    parser.add_argument("--model", default="codegen-350M")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scenario", action="append", choices=[*(each.name for each in SCENARIOS), "memory"])
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.bridge = arguments.bridge or ["cgverify"]
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(f"{peak(arguments.peak_of, arguments.model, 1, 2048):.0f}")
        return
    print(f"{arguments.model}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{'scenario':<18}{'candidate':<18}{'shape':>8}{'ratio':>8}{'quartiles':>16}  same bits")
    for scenario in SCENARIOS:
        if not arguments.scenario or scenario.name in arguments.scenario:
            measure(scenario, arguments)
    if not arguments.scenario or "memory" in arguments.scenario:
        for name in ("Hugging Face", *arguments.bridge):
            command = [sys.executable, __file__, "--peak-of", name, "--model", arguments.model]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"peak of a forward at 1x2048: {name} {done.stdout.strip()} MB")


if __name__ == "__main__":
    main()
