"""A run that does not fit into memory stops before it starts, and the error says what would fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgverify.cli.app import app
from cgverify.common.errors import MemoryShortError, UsageError
from cgverify.plan.axes import Axes
from cgverify.plan.cost.fit import require_fits

LARGE = Axes(seq_len=512)


def peak_of(axes: Axes) -> int:
    """A made-up cost: 1 GB, and more for every token and every case."""
    if axes.components and "model" in axes.cases:
        raise UsageError("no such components")
    return 10**9 + 10**7 * axes.seq_len * axes.batch_size * len(axes.cases)


def message(axes: Axes, available: float) -> str:
    with pytest.raises(MemoryShortError) as error:
        require_fits(axes, peak_of, int(available))
    assert error.value.exit_code == 3
    return str(error.value)


def test_run_that_fits_is_accepted() -> None:
    require_fits(LARGE, peak_of, 10**12)


def test_single_options_that_suffice_are_alternatives() -> None:
    assert message(LARGE, 12e9).endswith("12.0 GB are available: it would fit with --case default or with --seq-len 8.")


def test_options_that_suffice_together_are_listed_together() -> None:
    assert message(LARGE, 1.17e9).endswith("it would fit with --case default --seq-len 8.")


def test_least_memory_is_reported_if_nothing_fits() -> None:
    assert "the least is about 1.1 GB" in message(LARGE, 0.5e9)
    assert "the least is about 1.1 GB" in message(Axes(cases=("model",)), 0.5e9)


def test_command_that_does_not_fit_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgverify.runs.prepare.available", lambda: 0)
    monkeypatch.setattr("cgverify.runs.prepare.taken", lambda: 1 << 30)
    arguments = ["all-components", "--model", "codegen-6B", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: This run needs about ")
    assert "1.1 GB are available" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
