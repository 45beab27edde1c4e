"""The peak memory of one call, above what was in use before it.

On the CPU each figure is measured in a fresh process, by `python -m cgverify.bench.peak_memory REQUEST`, because memory
that a process has freed but kept would hide the next peak. Only Linux lets a process reset its peak. On an accelerator
the figure is the allocator's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cgverify.bench.calls import autograd_mode, forward_of, inputs_of
from cgverify.bench.models import bridge_module, load_model, reference_module
from cgverify.bench.records import Point
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.window import ModelVariant
from cgverify.common.errors import CgverifyError
from cgverify.common.memory import give_back_freed
from cgverify.common.numerics import pin_numerics
from cgverify.common.printable import message_of
from cgverify.common.records import Record
from cgverify.common.streams import stdout_to_stderr
from cgverify.observe.candidate import find_candidate


class MemoryRequest(Record):
    """What a fresh process measures."""

    point: Point
    model: str
    weights: str
    candidate: str | None
    """None for the reference."""
    threads: int


class PeakError(CgverifyError):
    """Peak memory could not be measured."""


def in_fresh_process(request: MemoryRequest) -> int:
    """Measure a request in a fresh process, in bytes.

    Raises:
        PeakError: the process failed, with its message.
    """
    command = [sys.executable, "-m", "cgverify.bench.peak_memory", request.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        if "bytes" in answer:
            return int(answer["bytes"])
        raise PeakError(answer["message"])
    except (IndexError, ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise PeakError(f"the fresh process failed: {last}") from None


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Return the bytes that a call takes at its peak, above those in use before it.

    Raises:
        PeakError: this system does not report it.
    """
    if device.type != "cpu":
        return _accelerator_peak(run, device)
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        raise PeakError(f"this system does not report peak memory on {device.type}")
    give_back_freed()  # memory that was freed but kept would be used again without counting
    try:
        reset.write_text("5")
    except OSError as error:
        raise PeakError(f"this system does not let a process reset its peak memory: {error.strerror}") from error
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _accelerator_peak(run: Callable[[], object], device: torch.device) -> int:
    accelerator = torch.accelerator
    accelerator.synchronize(device)
    try:
        accelerator.reset_peak_memory_stats(device)
        before = accelerator.memory_allocated(device)
    except RuntimeError as error:
        raise PeakError(f"torch does not report peak memory on {device}: {message_of(error)}") from error
    run()
    return accelerator.max_memory_allocated(device) - before


def _status(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(request: MemoryRequest) -> int:
    """Return the peak of a forward, or of booting if the scenario is `boot-memory`, in bytes."""
    pin_numerics(request.threads)
    point = request.point
    source = resolve(request.model, request.weights)
    variant = ModelVariant(getattr(torch, point.dtype), torch.device(point.device), source.config.rotary_dim)
    model: Any = load_model(source, variant, point.component)
    candidate = None if request.candidate is None else find_candidate(request.candidate)
    if point.scenario == "boot-memory":
        assert candidate is not None
        candidate.boot(load_model(source, variant, "block"))  # what is imported and set up only once is not counted
        return peak(lambda: candidate.boot(model), variant.device)
    if candidate is None:
        module = reference_module(model, point.component)
    else:
        module = bridge_module(candidate.boot(model), point.component)

    def forward(at: Point) -> Callable[[], Any]:
        return forward_of(module, model, at, inputs_of(at, source.config), source.config)

    warm_up, run = forward(point.model_copy(update={"batch_size": 1, "seq_len": 2})), forward(point)
    with autograd_mode(point):
        warm_up()
        return peak(run, variant.device)


def one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {message_of(error)}".split())


def main() -> None:
    request = MemoryRequest.model_validate_json(sys.argv[1])
    try:
        with stdout_to_stderr():
            answer: dict[str, Any] = {"bytes": measure(request)}
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a candidate may fail in any way, and the parent process reports it
        answer = {"message": one_line(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
