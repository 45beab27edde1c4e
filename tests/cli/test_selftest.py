"""`cgverify selftest`: as a process, and with a fault that it misses."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from command_line import Cli
from faults import ShiftedByOneBit
from typer.testing import CliRunner

from cgverify.cli.app import app
from cgverify.selftest import seeded, variants
from cgverify.selftest.candidates import ReferenceFault, fault
from cgverify.selftest.report import COLUMNS


@pytest.mark.slow
def test_verifier_in_three_dtypes_passes(cli: Cli, tmp_path: Path) -> None:
    done = cli("selftest", "--quick", "--output", "results", CGVERIFY_DTYPE="float32,bfloat16,float16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 missed, 0 false alarms" in done.stdout
    frame = pd.read_csv(tmp_path / "results" / "selftest.csv")
    assert list(frame.columns) == COLUMNS
    assert set(frame["dtype"]) == {"float32", "bfloat16", "float16"}
    assert set(frame[frame["outcome"] == "caught"]["rightly_blamed"]) == {"yes"}
    references = frame[frame["sort"] == "reference fault"]
    assert set(references["outcome"]) == {"refused", "suspect"}
    assert "0 passed, 0 wrongly blamed; 0 false alarms" in done.stdout
    correct = frame[frame["sort"] == "variant"]
    assert set(correct["outcome"]) == {"held"}
    assert (correct["r"] <= 1).all()
    assert len(correct) == len(variants.VARIANTS)


def test_quick_in_one_dtype_reports_every_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the candidates: all of them take minutes."""
    some = 0
    outcomes = {"caught", "unseen", "changes no bit", "below resolution", "held", "refused", "suspect"}
    for module, name in ((seeded, "FAULTS"), (seeded, "HIDDEN"), (variants, "VARIANTS"), (seeded, "REFERENCES")):
        kept = getattr(module, name)[::40]
        monkeypatch.setattr(module, name, kept)
        some += len(kept)
    done = CliRunner().invoke(app, ["selftest", "--quick", "--dtype", "float32", "--format", "csv", "-q"])
    assert done.exit_code == 0, done.output
    frame = pd.read_csv(io.StringIO(done.stdout))
    assert list(frame.columns) == COLUMNS
    assert set(frame["outcome"]) <= outcomes
    assert len(frame) == some


def test_missed_fault_is_reported_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unseen = fault(ShiftedByOneBit, "output", kinds=("attn",))
    monkeypatch.setattr(seeded, "FAULTS", (unseen,))
    monkeypatch.setattr(seeded, "HIDDEN", ())
    monkeypatch.setattr(variants, "VARIANTS", ())
    monkeypatch.setattr(seeded, "REFERENCES", ())
    done = CliRunner().invoke(
        app, ["selftest", "--quick", "--dtype", "float32", "--output", str(tmp_path / "results"), "-q"]
    )
    assert done.exit_code == 1, done.output
    assert "missed ShiftedByOneBit in float32 on cpu: The output is wrong by one unit in the last place" in done.stdout
    assert list(pd.read_csv(tmp_path / "results" / "selftest.csv")["outcome"]) == ["missed"]


def test_missed_reference_is_reported_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = seeded.references.VARIANTS[0]
    monkeypatch.setattr(seeded, "FAULTS", ())
    monkeypatch.setattr(seeded, "HIDDEN", ())
    monkeypatch.setattr(variants, "VARIANTS", ())
    monkeypatch.setattr(seeded, "REFERENCES", (ReferenceFault(right.candidate, right.kinds, "mlp"), right))
    done = CliRunner().invoke(
        app, ["selftest", "--quick", "--dtype", "float32", "--output", str(tmp_path / "results"), "-q"]
    )
    assert done.exit_code == 1, done.output
    assert "missed stock_reference in float32 on cpu: The reference is as `from_pretrained` returns it" in done.stdout
    assert "1 faults of the reference: 0 refused, 0 suspect, 1 passed" in " ".join(done.stdout.split())
    frame = pd.read_csv(tmp_path / "results" / "selftest.csv")
    assert list(frame["sort"]) == ["reference fault", "reference variant"]
    assert list(frame["outcome"]) == ["missed", "held"]


def test_wrong_option_is_reported_with_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for arguments, message in (
        (["--output", "results"], "exists already"),
        (["--dtype", "float31"], "did you mean 'float32'"),
        (["--format", "html"], "Unknown --format"),
    ):
        done = cli("selftest", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
