"""Measure points one after another in this process, and each figure of peak memory in a fresh process."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from cgverify.bench.calls import autograd_mode, forward_of, inputs_of, prepared, tensors
from cgverify.bench.models import WHOLE, Models, bytes_of, load_model, load_models, memory_shortage, reference_module
from cgverify.bench.peak_memory import MemoryRequest, PeakError, in_fresh_process, one_line
from cgverify.bench.records import Measured, Point
from cgverify.bench.timing import Call, Limits, in_rounds, product_flops
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import Candidate
from cgverify.observe.taps import cpu_copy

BYTES = ("memory", "boot-memory", "parameters")
"""Scenarios that are measured in bytes. All others are measured in seconds."""


@dataclass(frozen=True)
class Harness:
    """What measuring needs in addition to the points."""

    model: str
    """As the user gave it, for a fresh process; `weights` too."""
    weights: str
    source: Source
    candidates: Mapping[str, Candidate]
    threads: int
    limits: Limits

    def measure(self, points: Sequence[Point]) -> Iterator[list[Measured]]:
        """Yield the results of each point, one per candidate, as they are measured."""
        by_model = groupby(points, key=lambda point: (point.component == WHOLE, point.dtype, point.device))
        for (whole, dtype, device), group in by_model:
            variant = ModelVariant(getattr(torch, dtype), torch.device(device), self.source.config.rotary_dim)
            shortage = memory_shortage(self.source.config, variant, len(self.candidates)) if whole else None
            models = None  # frees the models of the group before
            for point in group:
                if shortage is not None:
                    yield self._all(point, f"not measured: {shortage}")
                elif point.scenario in ("memory", "boot-memory"):
                    yield self._memory(point, variant)
                else:
                    models = models or load_models(self.source, variant, point.component, self.candidates)
                    measure = {"boot": self._boot, "parameters": self._parameters}.get(point.scenario, self._forwards)
                    yield measure(point, models)

    def _forwards(self, point: Point, models: Models) -> list[Measured]:
        inputs = inputs_of(point, models.config)
        reference = reference_module(models.reference, point.component)
        calls: dict[str, Call | str] = {}
        same: dict[str, bool] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(autograd_mode(point))
            stack.enter_context(prepared(reference, point))
            first = forward_of(reference, models.reference, point, inputs, models.config)
            try:
                flops = product_flops(first)
                expected = _copies(first())
            except (RuntimeError, ValueError, IndexError) as error:
                return self._all(point, f"the reference raised {one_line(error)}")
            for name in self.candidates:
                try:
                    module = models.of_candidate(name, point.component)
                    stack.enter_context(prepared(module, point))
                    run = forward_of(module, models.reference, point, inputs, models.config)
                    found = _copies(run())
                    same[name] = len(found) == len(expected) and all(map(same_tensor, found, expected))
                    run()
                    calls[name] = Call(run)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # a candidate may fail in any way, and that is a result
                    calls[name] = f"raised {one_line(error)}"
            del expected
            measured = self._timed(point, Call(first), calls)
        return [
            each if each.message else each.model_copy(update={"flops": flops, "same_bits": same[each.candidate]})
            for each in measured
        ]

    def _boot(self, point: Point, models: Models) -> list[Measured]:
        """Compare booting a fresh copy of the model with making such a copy."""
        calls = {
            name: f"raised {one_line(bridge)}"
            if isinstance(bridge, BaseException)
            else _boot_call(self.candidates[name], models.reference)
            for name, bridge in models.bridges.items()
        }
        return self._timed(point, Call(lambda: copy.deepcopy(models.reference), gc.collect), calls)

    def _timed(self, point: Point, first: Call, calls: Mapping[str, Call | str]) -> list[Measured]:
        """Time each candidate's call against the first. A string instead of a call says why there is none."""
        ready = {name: call for name, call in calls.items() if isinstance(call, Call)}
        try:
            timings = in_rounds([first, *ready.values()], self.limits) if ready else []
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a call that ran twice may still fail later
            return self._all(point, f"raised while it was timed: {one_line(error)}")
        times = dict(zip(ready, timings, strict=True))
        return [
            _unmeasured(point, name, call)
            if isinstance(call, str)
            else Measured(point=point, candidate=name, unit="s", **asdict(times[name]))
            for name, call in calls.items()
        ]

    def _parameters(self, point: Point, models: Models) -> list[Measured]:
        reference = bytes_of(reference_module(models.reference, point.component))
        return self._bytes(point, reference, lambda name: bytes_of(models.of_candidate(name, point.component)))

    def _memory(self, point: Point, variant: ModelVariant) -> list[Measured]:
        def peak(candidate: str | None) -> int:
            request = MemoryRequest(
                point=point, model=self.model, weights=self.weights, candidate=candidate, threads=self.threads
            )
            return in_fresh_process(request)

        try:
            if point.scenario == "memory":
                reference = peak(None)
            else:
                reference = bytes_of(load_model(self.source, variant, point.component))
        except PeakError as error:
            return self._all(point, f"not measured: {error}")
        return self._bytes(point, reference, peak)

    def _bytes(self, point: Point, reference: int, measure: Callable[[str], int]) -> list[Measured]:
        """Compare bytes. The ratio of two single figures is its own interval."""
        results = []
        for name in self.candidates:
            try:
                value = measure(name)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a candidate may fail in any way, and that is a result
                message = str(error) if isinstance(error, PeakError) else f"raised {one_line(error)}"
                results.append(_unmeasured(point, name, message))
                continue
            ratio: dict[str, Any] = dict.fromkeys(("ratio", "low", "high"), value / reference if reference else None)
            results.append(
                Measured(point=point, candidate=name, unit="B", value=value, reference=reference, rounds=1, **ratio)
            )
        return results

    def _all(self, point: Point, message: str) -> list[Measured]:
        return [_unmeasured(point, name, message) for name in self.candidates]


def _unmeasured(point: Point, name: str, message: str) -> Measured:
    return Measured(point=point, candidate=name, unit="B" if point.scenario in BYTES else "s", message=message)


def _boot_call(candidate: Candidate, model: nn.Module) -> Call:
    copies: list[Any] = []

    def make_copy() -> None:
        copies.clear()
        gc.collect()  # a bridge and its hooks refer to each other in circles
        copies.append(copy.deepcopy(model))

    return Call(lambda: candidate.boot(copies[0]), make_copy)


def _copies(returned: Any) -> list[torch.Tensor]:
    return [cpu_copy(tensor) for tensor in tensors(returned)]
