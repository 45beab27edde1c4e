"""Shortcuts of matrix products: within wider bounds if they are allowed, a failure if they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn import functional
from verifying import failed, findings, verify

from cgverify.common.numerics import SHORTCUTS, pin_numerics
from cgverify.common.records import Verdict
from cgverify.oracle.monte_carlo import Drawn
from cgverify.oracle.product import products
from cgverify.oracle.shortcuts import NO_SHORTCUTS, Shortcuts
from cgverify.verification.metrics import assess

PRECISION = "cgverify.selftest.seeded.precision"
TF32_FAULTS = [f"{PRECISION}:{name}" for name in ("projections_in_tf32", "output_in_tf32", "MixInTF32", "ScoresInTF32")]
TF32, REDUCTION = Shortcuts(["tf32"]), Shortcuts(["reduction"])


@pytest.fixture
def _strict_afterwards() -> Iterator[None]:
    yield
    pin_numerics(None)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product_r(
    y: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
) -> float:
    ((_, (expected,)),) = products([x], weight, bias, shortcuts)
    return assess(y, expected)[0].value


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Round x to the nearest number with ten bits of mantissa."""
    return (x.view(torch.int32) + (1 << 12) & -(1 << 13)).view(torch.float32)


def truncated(x: torch.Tensor) -> torch.Tensor:
    """Cut x after ten bits of mantissa."""
    return (x.view(torch.int32) & -(1 << 13)).view(torch.float32)


def two_halves(x: torch.Tensor) -> torch.Tensor:
    """Return x as the sum of two bfloat16 numbers."""
    high = x.bfloat16().float()
    return high + (x - high).bfloat16().float()


# --- operands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [64, 1024, 4096])
@pytest.mark.parametrize("taken", [rounded, truncated])
def test_tf32_operands_are_only_within_the_wider_bound(taken: Callable[[torch.Tensor], torch.Tensor], n: int) -> None:
    x, weight, bias = normal(16, n), normal(64, n, seed=1) * 0.05, normal(64, seed=2)
    y = functional.linear(taken(x), taken(weight), bias)
    assert product_r(y, x, weight, bias) > 1
    assert 0.02 < product_r(y, x, weight, bias, TF32) <= 1
    for nearer in (x, two_halves(x)):
        assert product_r(functional.linear(nearer, weight, bias), x, weight, bias, TF32) <= 1


@pytest.mark.parametrize("n", [64, 1024])
def test_bfloat16_operands_exceed_the_bound_of_tf32(n: int) -> None:
    x, weight = normal(16, n), normal(64, n, seed=1) * 0.05
    y = x.bfloat16().float() @ weight.bfloat16().float().T
    both = product_r(y, x, weight, shortcuts=Shortcuts(["tf32", "bfloat16"]))
    assert 0.02 < both <= 1
    assert product_r(y, x, weight, shortcuts=TF32) > 5 * both


@pytest.mark.parametrize("fault", [lambda y: y * 1.02, lambda y: y.roll(1, 0), lambda y: y + 0.1])
def test_fault_exceeds_the_wider_bound(fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x, weight = normal(16, 1024), normal(64, 1024, seed=1) * 0.05
    assert product_r(fault(x @ weight.T), x, weight, shortcuts=TF32) > 1


def test_equal_terms_with_equal_rounding_are_within_the_bound() -> None:
    x, weight = torch.full((1, 900), 1.0004), torch.full((1, 900), 1.0004)
    for taken in (rounded, truncated):
        assert product_r(taken(x) @ taken(weight).T, x, weight, shortcuts=TF32) <= 1


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [64, 1024])
def test_sixteen_bit_sums_are_within_the_bound_only_if_allowed(dtype: torch.dtype, n: int) -> None:
    x, weight = normal(16, n).to(dtype), (normal(64, n, seed=1) * 0.05).to(dtype)
    parts = torch.stack([a @ b.T for a, b in zip(x.chunk(8, -1), weight.chunk(8, -1), strict=True)])
    y = parts[0]
    for part in parts[1:]:
        y = y + part
    assert product_r(y, x, weight) > 1
    assert product_r(y, x, weight, shortcuts=REDUCTION) <= 1
    assert product_r(y + 4, x, weight, shortcuts=REDUCTION) > 1 or dtype == torch.bfloat16


def test_rows_of_zeros_have_a_bound() -> None:
    x, weight = torch.zeros(2, 300, dtype=torch.bfloat16), normal(4, 300).bfloat16()
    assert product_r(x @ weight.T, x, weight, shortcuts=REDUCTION) == 0


def test_gradient_spread_includes_lost_operand_bits() -> None:
    value, squares = torch.zeros(20_000, dtype=torch.float64), torch.ones(20_000, dtype=torch.float64)

    def spread(shortcuts: Shortcuts) -> float:
        drawn = Drawn(0, shortcuts)
        return float(drawn.summed(value, lambda: squares, 64, torch.float32).std())

    assert spread(TF32) > 500 * spread(NO_SHORTCUTS)


# --- candidates -------------------------------------------------------------------------------------------------------


def test_tf32_candidates_diverge_unless_it_is_allowed() -> None:
    plan = {"candidates": TF32_FAULTS, "components": ["attn"], "cases": ["default", "decode"]}
    strict = verify(**plan)
    assert {result.cell.candidate for result in strict if result.verdict.fails} == set(TF32_FAULTS)
    widened = verify(**plan, shortcuts=TF32)
    assert failed(widened) == []
    assert Verdict.BOUNDED in {finding.verdict for finding in findings(widened)}


def test_other_faults_diverge_if_tf32_is_allowed() -> None:
    names = ["HeadsSwapped", "MaskOnOtherSideOfScale", "OnePartition", "PositionsIgnored"]
    results = verify(candidates=[f"faults:{name}" for name in names], components=["attn"], shortcuts=TF32)
    assert {r.cell.candidate.partition(":")[2] for r in results if r.verdict.fails} == set(names)


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "precision", "tf32", "reduction"),
    [
        ((), "highest", False, False),
        (("tf32",), "high", True, False),
        (("bfloat16",), "medium", True, False),
        (("reduction",), "highest", False, True),
        (SHORTCUTS, "medium", True, True),
    ],
)
@pytest.mark.usefixtures("_strict_afterwards")
def test_flags_are_set_recorded_and_restored(
    names: tuple[str, ...], precision: str, tf32: bool, reduction: bool
) -> None:
    recorded = pin_numerics(None, names)
    assert recorded["allowed"] == sorted(names)
    assert recorded["float32_matmul_precision"] == torch.get_float32_matmul_precision() == precision
    assert recorded["tf32"] is torch.backends.cuda.matmul.allow_tf32 is tf32
    products = torch.backends.cuda.matmul
    assert (
        products.allow_bf16_reduced_precision_reduction is products.allow_fp16_reduced_precision_reduction is reduction
    )
    assert recorded["reduced_precision_reduction"] is reduction
    assert recorded["fp16_accumulation"] is products.allow_fp16_accumulation is False
    assert recorded["onednn_float32"] == torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    assert pin_numerics(None)["allowed"] == []
    assert torch.get_float32_matmul_precision() == "highest"
