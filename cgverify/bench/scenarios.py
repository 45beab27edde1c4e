"""What can be measured: the scenarios, their shapes, and which of them a plain `cgverify bench` takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from cgverify.bench.records import Point
from cgverify.common.errors import UsageError

COMPONENTS = ("attn", "block", "model", "mlp", "mlp.in", "mlp.out", "attn.o", "ln1")
_WITH_CACHE = ("attn", "block", "model")


@dataclass(frozen=True)
class Shape:
    """Sizes of the inputs: `2x128`, or `1x1+1000` against 1000 cached tokens."""

    batch_size: int
    seq_len: int
    cached: int = 0

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Raises UsageError for text that is no shape."""
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})(?:\+(\d{1,6}))?", text)
        if match is None:
            raise UsageError(f"--shape {text!r} is no shape: write BATCHxTOKENS as 2x128, or 1x1+1000 with a cache.")
        batch_size, seq_len, cached = (int(number or 0) for number in match.groups())
        return cls(batch_size, seq_len, cached)


NO_INPUTS = (Shape(0, 0),)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, text.split()))


_FORWARD = _shapes("1x8 2x8 1x32 1x128 2x128 4x128 16x128 1x512 1x1024 1x2048")


@dataclass(frozen=True)
class Scenario:
    """One way of using a component."""

    says: str
    shapes: tuple[Shape, ...]
    components: tuple[str, ...] = COMPONENTS
    with_cache: bool = False


SCENARIOS = {
    "prefill": Scenario("a forward in inference_mode", _FORWARD),
    "no-grad": Scenario("a forward under no_grad", _FORWARD),
    "decode": Scenario(
        "one token against a cache",
        _shapes("1x1+0 1x1+100 1x1+500 1x1+1000 1x1+2000 4x1+1000 16x1+1000"),
        components=_WITH_CACHE,
        with_cache=True,
    ),
    "train": Scenario("forward and backward", _shapes("2x8 2x128 4x128 1x512 1x1024")),
    "one-hook": Scenario("a forward with one hook that looks on", _shapes("2x8 2x128 1x512 1x1024 1x2048")),
    "all-hooks": Scenario("a forward with every activation cached", _shapes("2x8 2x128 1x512 1x1024 1x2048")),
    "boot": Scenario("wrapping, beside copying the module's weights", NO_INPUTS, ("model", "block")),
    "memory": Scenario("peak memory of a forward, above its inputs", _shapes("2x128 1x1024 1x2048")),
    "boot-memory": Scenario("peak memory of wrapping, beside the module's own", NO_INPUTS, ("model", "block")),
    "parameters": Scenario("bytes of parameters and buffers", NO_INPUTS),
}

PLAIN = (
    ("prefill", "attn", "2x8 2x128 1x512 1x1024 1x2048"),
    ("decode", "attn", "1x1+0 1x1+1000"),
    ("train", "attn", "2x128 1x512"),
    ("one-hook", "attn", "1x512"),
    ("all-hooks", "attn", "1x512"),
    ("prefill", "block", "2x128 1x512"),
    ("decode", "block", "1x1+1000"),
    ("boot", "block", ""),
    ("parameters", "block", ""),
    ("memory", "attn", "1x2048"),
)
"""Where neither scenario nor component nor shape is asked for: minutes, not an hour."""


@dataclass(frozen=True)
class Selection:
    """What is asked for; an empty part asks for all that the others allow, and nothing at all for `PLAIN`."""

    scenarios: Sequence[str] = ()
    components: Sequence[str] = ()
    shapes: Sequence[Shape] = ()
    dtypes: Sequence[str] = ("float32",)
    devices: Sequence[str] = ("cpu",)

    def points(self, n_positions: int) -> list[Point]:
        """All that is to be measured, in report order; no more positions than the checkpoint has.

        Raises:
            UsageError: a shape that was asked for does not fit, or nothing is left.
        """
        for shape in self.shapes:
            if shape.seq_len + shape.cached > n_positions:
                raise UsageError(f"The model has {n_positions} positions: give a smaller --shape.")
        points = [
            Point(
                component=component,
                scenario=scenario,
                dtype=dtype,
                device=device,
                batch_size=shape.batch_size,
                seq_len=shape.seq_len,
                cached=shape.cached,
            )
            for dtype, device in product(self.dtypes, self.devices)
            for scenario, component, shape in self._places()
            if shape.seq_len + shape.cached <= n_positions
        ]
        if not points:
            raise UsageError(
                "No scenario that was asked for is for that component and shape; decode alone takes a cache: "
                + "; ".join(f"{name} is for {', '.join(each.components)}" for name, each in SCENARIOS.items())
                + "."
            )
        return points

    def _places(self) -> Iterator[tuple[str, str, Shape]]:
        if not (self.scenarios or self.components or self.shapes):
            for name, component, shapes in PLAIN:
                yield from ((name, component, shape) for shape in _shapes(shapes) or NO_INPUTS)
            return
        for component, name in product(self.components or COMPONENTS[:2], self.scenarios or SCENARIOS):
            scenario = SCENARIOS[name]
            if component in scenario.components:
                yield from ((name, component, shape) for shape in self._shapes_of(scenario))

    def _shapes_of(self, scenario: Scenario) -> Iterable[Shape]:
        if scenario.shapes == NO_INPUTS:
            return () if self.shapes and not self.scenarios else NO_INPUTS
        if not self.shapes:
            return scenario.shapes
        return [shape for shape in self.shapes if scenario.with_cache or not shape.cached]
