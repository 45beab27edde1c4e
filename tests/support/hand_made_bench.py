"""Benchmark results made by hand."""

from __future__ import annotations

from typing import Any

from cgverify.bench.records import BenchRun, Measured, Point

MACHINE = {"processor": "one", "processors": 2}


def measured(ratio: float | None, *, half_width: float = 0.01, seq_len: int = 8, **changes: Any) -> Measured:
    """Return a result of attention's prefill of 2 × seq_len tokens, which takes Hugging Face 10 ms."""
    point = Point(component="attn", scenario="prefill", dtype="float32", device="cpu", batch_size=2, seq_len=seq_len)
    given: dict[str, Any] = {"point": point, "candidate": "cgverify", "unit": "s", "rounds": 9}
    if ratio is not None:
        ends = {"low": ratio - half_width, "high": ratio + half_width}
        given |= {"value": ratio / 100, "reference": 0.01, "ratio": ratio, **ends, "same_bits": True, "flops": 10**8}
    return Measured(**given | changes)


def run(*rows: Measured, **changes: Any) -> BenchRun:
    environment = {
        "machine": changes.pop("machine", MACHINE),
        "numerics": {"threads": changes.pop("threads", 2)},
        "versions": {"torch": "2"},
    }
    given: dict[str, Any] = {
        "created": "2026-01-01",
        "model": "codegen-nano",
        "weights_origin": "shipped",
        "weights_digest": "0",
        "settings": {},
        "environment": environment,
        "product_rates": {"float32 cpu": 1e11},
        "measured": rows,
    }
    return BenchRun(**given | changes)
