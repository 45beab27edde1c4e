"""A run that cannot fit stops before it starts, and is told what would."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cgverify.cli.app import app
from cgverify.common.errors import MemoryShortError, UsageError
from cgverify.plan.cells import Axes
from cgverify.plan.cost.fit import require_fits

LARGE = Axes(seq_len=512)


def peak_of(axes: Axes) -> int:
    """A made-up cost: 1 GB, and more for every token and every case."""
    if axes.components and "model" in axes.cases:
        raise UsageError("no such components")
    return 10**9 + 10**7 * axes.seq_len * axes.batch_size * len(axes.cases)


def told(axes: Axes, available: float) -> str:
    with pytest.raises(MemoryShortError) as error:
        require_fits(axes, peak_of, int(available))
    assert error.value.exit_code == 3
    return str(error.value)


def test_what_fits_runs() -> None:
    require_fits(LARGE, peak_of, 10**12)


def test_single_options_that_suffice_are_alternatives() -> None:
    assert told(LARGE, 12e9).endswith("12.0 GB can be had: it would fit with --case default or with --seq-len 8.")


def test_options_that_suffice_together_are_listed_together() -> None:
    assert told(LARGE, 1.17e9).endswith("it would fit with --case default --seq-len 8.")


def test_where_nothing_fits_the_least_is_told() -> None:
    assert "the least is about 1.1 GB" in told(LARGE, 0.5e9)
    assert "the least is about 1.1 GB" in told(Axes(cases=("model",)), 0.5e9)


def test_the_command_stops_before_it_leaves_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cgverify.runs.prepare.available", lambda: 0)
    monkeypatch.setattr("cgverify.runs.prepare.taken", lambda: 1 << 30)
    arguments = ["all-components", "--model", "codegen-6B", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: This run needs about ")
    assert "1.1 GB can be had" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()
