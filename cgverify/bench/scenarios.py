"""What can be measured: scenarios, their shapes, and the selection that `cgverify bench` takes without options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product

from cgverify.bench.records import Point
from cgverify.common.errors import UsageError

COMPONENTS = ("attn", "block", "model", "mlp", "mlp.in", "mlp.out", "attn.o", "ln1")


@dataclass(frozen=True)
class Shape:
    """Sizes of the inputs: `2x128`, or `1x1+1000` with 1000 cached tokens."""

    batch_size: int
    seq_len: int
    cached: int = 0

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read a shape. Raises UsageError if the text is not a shape."""
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})(?:\+(\d{1,6}))?", text)
        if match is None:
            raise UsageError(
                f"--shape {text!r} is not a shape: write BATCHxTOKENS as 2x128, or 1x1+1000 with cached tokens."
            )
        batch_size, seq_len, cached = (int(number or 0) for number in match.groups())
        return cls(batch_size, seq_len, cached)


NO_INPUTS = (Shape(0, 0),)


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, text.split())) or NO_INPUTS


@dataclass(frozen=True)
class Scenario:
    """One way to use a component: the shapes and components that it is measured with by default."""

    shapes: tuple[Shape, ...]
    components: tuple[str, ...] = COMPONENTS
    generated: int = 0
    """How many tokens are generated after the prompt."""


_FORWARD = _shapes("1x8 2x8 1x32 1x128 2x128 4x128 16x128 1x512 1x1024 1x2048")
_HOOKED = _shapes("2x8 2x128 1x512 1x1024 1x2048")
_CACHED = _shapes("1x1+0 1x1+100 1x1+500 1x1+1000 1x1+2000 4x1+1000 16x1+1000")

SCENARIOS = {
    "prefill": Scenario(_FORWARD),  # a forward in inference_mode
    "no-grad": Scenario(_FORWARD),  # a forward under no_grad
    "decode": Scenario(_CACHED, ("attn", "block", "model")),  # one token with a cache
    "train": Scenario(_shapes("2x8 2x128 4x128 1x512 1x1024")),  # forward and backward
    "one-hook": Scenario(_HOOKED),  # a forward with one hook that reads
    "all-hooks": Scenario(_HOOKED),  # a forward that caches every activation
    "cache-all": Scenario(_HOOKED, ("model",)),  # run_with_cache, compared with hidden states and attentions
    "cache-one": Scenario(_HOOKED, ("model",)),  # run_with_cache of one name, compared with a forward
    "generate": Scenario(_shapes("1x128 1x512"), ("model",), generated=64),  # greedily, after a prompt
    "boot": Scenario(NO_INPUTS, ("model", "block")),  # booting a bridge, compared with copying the weights once
    "memory": Scenario(_shapes("2x128 1x1024 1x2048")),  # peak memory of a forward, above its inputs
    "boot-memory": Scenario(NO_INPUTS, ("model", "block")),  # peak memory of booting, compared with the model's own
    "parameters": Scenario(NO_INPUTS),  # bytes of parameters and buffers
}

SELECTION = (
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
"""What is measured without options: minutes instead of an hour."""


@dataclass(frozen=True)
class Selection:
    """The options of a user. An empty option allows all that the others allow; all empty means `SELECTION`."""

    scenarios: Sequence[str] = ()
    components: Sequence[str] = ()
    shapes: Sequence[Shape] = ()
    dtypes: Sequence[str] = ("float32",)
    devices: Sequence[str] = ("cpu",)

    def points(self, n_positions: int) -> list[Point]:
        """Return the points to measure, in report order, without shapes that need more than `n_positions`.

        Raises:
            UsageError: a given shape has more positions than the model, or no point is left.
        """
        for shape in self.shapes:
            if shape.seq_len + shape.cached > n_positions:
                raise UsageError(f"The model has {n_positions} positions: give a smaller --shape.")
        points = [
            Point(component=component, scenario=scenario, dtype=dtype, device=device, **asdict(shape))
            for dtype, device in product(self.dtypes, self.devices)
            for scenario, component, shape in self._places()
            if shape.seq_len + shape.cached + SCENARIOS[scenario].generated <= n_positions
        ]
        if not points:
            raise UsageError(
                "None of the given scenarios is for that component and shape (only decode takes a cache): choose from "
                + "; ".join(f"{name} is for {', '.join(each.components)}" for name, each in SCENARIOS.items())
                + "."
            )
        return points

    def _places(self) -> Iterator[tuple[str, str, Shape]]:
        if not (self.scenarios or self.components or self.shapes):
            for name, component, shapes in SELECTION:
                yield from ((name, component, shape) for shape in _shapes(shapes))
            return
        for component, name in product(self.components or COMPONENTS[:2], self.scenarios or SCENARIOS):
            if component in SCENARIOS[name].components:
                yield from ((name, component, shape) for shape in self._shapes_of(name))

    def _shapes_of(self, scenario: str) -> Iterable[Shape]:
        default = SCENARIOS[scenario].shapes
        if default == NO_INPUTS:
            return () if self.shapes and not self.scenarios else NO_INPUTS
        return [shape for shape in self.shapes if scenario == "decode" or not shape.cached] if self.shapes else default
