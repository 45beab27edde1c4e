"""`cgverify selftest`: as a process, and with an exam that it cannot pass."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import Cli
from typer.testing import CliRunner

from cgverify.bridge import CodeGenAttentionBridge
from cgverify.cli.app import app
from cgverify.selftest import table
from cgverify.selftest.entry import fault
from cgverify.selftest.report import COLUMNS
from cgverify.selftest.table import FAULTS, VARIANTS


class ShiftedByOneBit(CodeGenAttentionBridge):
    """One unit in the last place off, and wrong by half in float64."""

    def _output(self, z: torch.Tensor) -> torch.Tensor:
        output = super()._output(z)
        return output * 1.5 if output.dtype == torch.float64 else torch.nextafter(output, output + 1)


@pytest.mark.slow
def test_the_verifier_passes_its_exam(cli: Cli, tmp_path: Path) -> None:
    done = cli("selftest", "--quick", "--output", "exam", CGVERIFY_DTYPE="float32,bfloat16,float16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missed, 0 false alarms" in done.stdout
    frame = pd.read_csv(tmp_path / "exam" / "selftest.csv")
    assert list(frame.columns) == COLUMNS
    assert set(frame["dtype"]) == {"float32", "bfloat16", "float16"}
    caught = frame[frame["outcome"] == "caught"]
    assert (caught["rightly_blamed"] == "yes").mean() >= 0.95
    variants = frame[frame["sort"] == "variant"]
    assert set(variants["outcome"]) == {"held"}
    assert (variants["r"] <= 1).all()
    assert len(variants) == 3 * len(VARIANTS)


def test_quick_in_one_dtype_asks_for_every_fault(cli: Cli) -> None:
    done = cli("selftest", "--quick", "--dtype", "float32", "--format", "csv", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    frame = pd.read_csv(io.StringIO(done.stdout))
    assert list(frame.columns) == COLUMNS
    assert set(frame["outcome"]) <= {"caught", "changes no bit", "below resolution", "held"}
    assert len(frame) == len(FAULTS) + len(VARIANTS)


def test_a_miss_ends_with_one_and_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unseen = fault(ShiftedByOneBit, "output", kinds=("attn",))
    monkeypatch.setattr(table, "FAULTS", (unseen,))
    monkeypatch.setattr(table, "VARIANTS", ())
    done = CliRunner().invoke(
        app, ["selftest", "--quick", "--dtype", "float32", "--output", str(tmp_path / "exam"), "-q"]
    )
    assert done.exit_code == 1, done.output
    assert "missed ShiftedByOneBit in float32 on cpu: One unit in the last place off" in done.stdout
    assert list(pd.read_csv(tmp_path / "exam" / "selftest.csv")["outcome"]) == ["missed"]


def test_what_is_wrong_with_the_command_is_told(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "exam").mkdir()
    for arguments, told in (
        (["--output", "exam"], "exists already"),
        (["--dtype", "float31"], "did you mean 'float32'"),
        (["--format", "html"], "Unknown format"),
    ):
        done = cli("selftest", *arguments)
        assert done.returncode == 2
        assert told in done.stderr
