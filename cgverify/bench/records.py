"""What is measured and what came out: Point, Measured, BenchRun. Plain values only, no tensors."""

from __future__ import annotations

from typing import Any, Literal

from cgverify.common.records import Record

SCHEMA_VERSION = 1


class Point(Record):
    """One thing to measure on both sides. Its content is its identity."""

    component: str
    """A kind of component of layer 0, `attn`, or `model`."""
    scenario: str
    dtype: str
    device: str
    batch_size: int = 0
    """0 where the scenario has no inputs, as booting."""
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
        """For sentences: `attn prefill 2x128 float32 cpu`."""
        parts = (self.component, self.scenario, self.shape, self.dtype, self.device)
        return " ".join(part for part in parts if part)


class Measured(Record):
    """A point, measured on one candidate and on the reference."""

    point: Point
    candidate: str
    unit: Literal["s", "B"]
    """Seconds a call (the median over rounds), or bytes."""
    value: float | None = None
    """The candidate's; None where nothing was measured, and `message` says why."""
    reference: float | None = None
    ratio: float | None = None
    """Candidate over reference: the median over rounds of the two times of one round."""
    low: float | None = None
    high: float | None = None
    """The ends of the ratio's interval (`cgverify.bench.statistics`)."""
    rounds: int = 0
    tight: bool = True
    """False where the time limit came before the interval was tight."""
    same_bits: bool | None = None
    """Whether all that both sides returned agrees bit for bit."""
    flops: int | None = None
    """Of the reference's matrix products in one call."""
    message: str = ""


class BenchRun(Record):
    """A whole benchmark, as `bench.json` holds it; also a baseline."""

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
        """The time that its matrix products alone would take at the measured rate, over `seconds`."""
        rate = self.product_rates.get(f"{measured.point.dtype} {measured.point.device}")
        if not measured.flops or not rate or not seconds or measured.unit != "s":
            return None
        return measured.flops / rate / seconds
