"""Points -> what was measured, one after another in this process; figures of memory each in a fresh one."""

from __future__ import annotations

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import nn

from cgverify.bench import calls, memory
from cgverify.bench.memory import PeakError
from cgverify.bench.rate import product_flops
from cgverify.bench.records import Measured, Point
from cgverify.bench.rounds import Call, Limits, in_rounds
from cgverify.bench.subjects import WHOLE, Subjects, Workshop, bytes_of
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant
from cgverify.common.printable import said
from cgverify.observe.bits import same_tensor
from cgverify.observe.candidate import Candidate


@dataclass(frozen=True)
class Harness:
    """All that measuring needs beside the points."""

    model: str
    weights: str
    """As a fresh process is to be told them."""
    source: Source
    candidates: Mapping[str, Candidate]
    threads: int
    limits: Limits

    def measure(self, points: Sequence[Point]) -> Iterator[list[Measured]]:
        """What came out at each point, one result per candidate, as it is found."""
        for (whole, dtype, device), group in groupby(points, key=_subject):
            setting = ModelVariant(getattr(torch, dtype), torch.device(device), self.source.config.rotary_dim)
            workshop = Workshop(self.source, setting, WHOLE if whole else "block")
            subjects = None  # those of the group before are let go first
            lacking = workshop.lacking(len(self.candidates))
            for point in group:
                if lacking is not None:
                    yield self._all(point, f"not measured: {lacking}")
                    continue
                if point.scenario.endswith("memory"):
                    yield self._memory(point, workshop)
                    continue
                subjects = subjects or workshop.subjects(self.candidates)
                yield self._at(point, subjects)

    def _at(self, point: Point, subjects: Subjects) -> list[Measured]:
        if point.scenario == "parameters":
            return self._parameters(point, subjects)
        if point.scenario == "boot":
            return self._boot(point, subjects)
        return self._forwards(point, subjects)

    def _forwards(self, point: Point, subjects: Subjects) -> list[Measured]:
        inputs = calls.inputs_of(point, subjects.config)
        reference = subjects.of_reference(point.component)
        ready: dict[str, Call] = {}
        raised: dict[str, BaseException] = {}
        same: dict[str, bool] = {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(calls.mode(point))
            stack.enter_context(calls.prepared(reference, point))
            first = calls.forward_of(reference, point, inputs, subjects.config)
            try:
                flops = product_flops(first)
                wanted = _kept(first())
            except (RuntimeError, ValueError, IndexError) as error:
                return self._all(point, f"the reference raised {_sentence(error)}")
            for name in self.candidates:
                try:
                    module = subjects.of_candidate(name, point.component)
                    stack.enter_context(calls.prepared(module, point))
                    run = calls.forward_of(module, point, inputs, subjects.config)
                    same[name] = _same(_kept(run()), wanted)
                    run()
                    ready[name] = Call(run)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # a candidate may fail in any way, and that is a result
                    raised[name] = error
            del wanted
            found = self._timed(point, Call(first), ready, raised)
        return [
            each if each.message else each.model_copy(update={"flops": flops, "same_bits": same[each.candidate]})
            for each in found
        ]

    def _boot(self, point: Point, subjects: Subjects) -> list[Measured]:
        """Wrapping a fresh copy of the model, beside making such a copy."""
        raised = {name: bridge for name, bridge in subjects.bridges.items() if isinstance(bridge, BaseException)}
        ready = {
            name: _booting(candidate, subjects.reference)
            for name, candidate in self.candidates.items()
            if name not in raised
        }
        copying = Call(lambda: copy.deepcopy(subjects.reference), gc.collect)
        return self._timed(point, copying, ready, raised)

    def _timed(
        self, point: Point, first: Call, ready: Mapping[str, Call], raised: Mapping[str, BaseException]
    ) -> list[Measured]:
        """A result for each candidate: of those that are ready their times beside the first call's."""
        try:
            timings = in_rounds([first, *ready.values()], self.limits) if ready else []
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # one that ran twice may fail later all the same
            return self._all(point, f"raised while it was timed: {_sentence(error)}")
        times = dict(zip(ready, timings, strict=True))
        return [
            _unmeasured(point, name, f"raised {_sentence(raised[name])}")
            if name in raised
            else Measured(
                point=point,
                candidate=name,
                unit="s",
                value=times[name].seconds,
                reference=times[name].first_seconds,
                ratio=times[name].ratio.value,
                low=times[name].ratio.low,
                high=times[name].ratio.high,
                rounds=times[name].rounds,
                tight=times[name].tight,
            )
            for name in self.candidates
        ]

    def _parameters(self, point: Point, subjects: Subjects) -> list[Measured]:
        theirs = bytes_of(subjects.of_reference(point.component))

        def ours(name: str) -> int:
            return bytes_of(subjects.of_candidate(name, point.component))

        return [_weighed(point, name, ours, theirs) for name in self.candidates]

    def _memory(self, point: Point, workshop: Workshop) -> list[Measured]:
        def figure(candidate: str | None) -> int:
            return memory.in_fresh_process(
                memory.MemoryRequest(
                    point=point.model_dump(),
                    model=self.model,
                    weights=self.weights,
                    rotary_dim=self.source.config.rotary_dim,
                    candidate=candidate,
                    threads=self.threads,
                )
            )

        try:
            theirs = bytes_of(workshop.model()) if point.scenario == "boot-memory" else figure(None)
        except PeakError as error:
            return self._all(point, f"not measured: {error}")
        return [_weighed(point, name, figure, theirs) for name in self.candidates]

    def _all(self, point: Point, message: str) -> list[Measured]:
        return [_unmeasured(point, name, message) for name in self.candidates]


def _weighed(point: Point, name: str, figure: Callable[[str], int], theirs: int) -> Measured:
    """Bytes of a candidate beside the reference's; the ratio of one figure to another has no interval but itself."""
    try:
        ours = figure(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a candidate may fail in any way, and that is a result
        return _unmeasured(point, name, str(error) if isinstance(error, PeakError) else f"raised {_sentence(error)}")
    ratio = ours / theirs if theirs else None
    return Measured(
        point=point,
        candidate=name,
        unit="B",
        value=ours,
        reference=theirs,
        ratio=ratio,
        low=ratio,
        high=ratio,
        rounds=1,
    )


def _unmeasured(point: Point, name: str, message: str) -> Measured:
    unit: Literal["s", "B"] = "B" if point.scenario in ("memory", "boot-memory", "parameters") else "s"
    return Measured(point=point, candidate=name, unit=unit, message=message)


def _booting(candidate: Candidate, model: nn.Module) -> Call:
    fresh: list[Any] = []

    def before() -> None:
        fresh.clear()
        gc.collect()  # a bridge and its hooks refer to each other in circles
        fresh.append(copy.deepcopy(model))

    return Call(lambda: candidate.boot(fresh[0]), before)


def _kept(returned: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in calls.tensors(returned)]


def _same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(same_tensor, ours, theirs))


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(said(error).split())}"


def _subject(point: Point) -> tuple[bool, str, str]:
    return point.component == WHOLE, point.dtype, point.device
