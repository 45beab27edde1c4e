"""What is measured and the results: Point, Measured, BenchRun. Plain values without tensors."""

from __future__ import annotations

from typing import Any, Literal

from cgverify.common.records import Record

SCHEMA_VERSION = 1


class Point(Record):
    """One thing to measure on both sides. Two points with the same fields are the same point."""

    component: str
    """A kind of component of layer 0, such as `attn`, or `model`."""
    scenario: str
    dtype: str
    device: str
    batch_size: int = 0
    """0 if the scenario has no inputs, such as `boot`."""
    seq_len: int = 0
    cached: int = 0
    """Tokens in the cache before the forward."""

    @property
    def shape(self) -> str:
        """`2x128`, `1x1+1000` with a cache, empty without inputs."""
        if not self.batch_size:
            return ""
        return f"{self.batch_size}x{self.seq_len}" + (f"+{self.cached}" if self.cached else "")

    @property
    def name(self) -> str:
        """The point in messages: `attn prefill 2x128 float32 cpu`."""
        parts = (self.component, self.scenario, self.shape, self.dtype, self.device)
        return " ".join(part for part in parts if part)


class Measured(Record):
    """A point measured on one candidate and on the reference."""

    point: Point
    candidate: str
    unit: Literal["s", "B"]
    """Seconds of one call (the median over rounds), or bytes."""
    value: float | None = None
    """The candidate's. None if nothing was measured, as `message` explains."""
    reference: float | None = None
    ratio: float | None = None
    """Candidate over reference: the median over rounds of the ratio of two times in one round."""
    low: float | None = None
    high: float | None = None
    """The ends of the ratio's interval (`cgverify.bench.timing`)."""
    rounds: int = 0
    tight: bool = True
    """False if the time limit was reached before the interval was narrow enough."""
    same_bits: bool | None = None
    """Whether both sides returned the same tensors, bit for bit."""
    flops: int | None = None
    """FLOPs of the reference's matrix products in one call."""
    message: str = ""


class BenchRun(Record):
    """A whole benchmark: the content of `bench.json`, which is also a baseline."""

    schema_version: int = SCHEMA_VERSION
    created: str
    model: str
    weights_origin: str
    weights_digest: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    product_rates: dict[str, float]
    """Measured FLOP/s of a large matrix product, by `dtype device`."""
    measured: tuple[Measured, ...]

    def share_of_limit(self, measured: Measured, seconds: float | None) -> float | None:
        """Return the time that the matrix products alone would take at the measured rate, divided by `seconds`."""
        rate = self.product_rates.get(f"{measured.point.dtype} {measured.point.device}")
        if not measured.flops or not rate or not seconds or measured.unit != "s":
            return None
        return measured.flops / rate / seconds

    def __repr__(self) -> str:
        return f"<BenchRun of {self.model}: {len(self.measured)} measurements, {self.created}>"

    def _repr_html_(self) -> str:
        from cgverify.bench.page import notebook_output

        return notebook_output(self)
