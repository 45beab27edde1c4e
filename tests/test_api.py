"""What Python code calls."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sweeping import SMALL

import cgverify
from cgverify.errors import ConfigError, RunFolderError, UnknownNameError
from cgverify.store import RunFolder, read

SCHEMA_1 = Path(__file__).parent / "runs" / "schema-1"
QUICK = {**SMALL, "layers": 0, "cases": "default", "dtypes": "float32"}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_sweep_returns_what_it_found_and_keeps_it(tmp_path: Path) -> None:
    result = cgverify.sweep(QUICK, tmp_path / "run", threads=1)
    result.assert_ok()
    assert result.ok
    assert set(result.findings["component"]) == {"embed", "blocks.0.ln1", "blocks.0.attn", "blocks.0.mlp.out"}
    assert result.summary["taps"].sum() == len(result.findings)
    loaded = cgverify.load_run(tmp_path / "run")
    assert loaded.findings.equals(result.findings)
    assert loaded.ok
    assert (tmp_path / "run" / "findings.csv").read_text() == result.findings.to_csv(index=False)


def test_a_failure_is_raised_with_its_sentence(tmp_path: Path) -> None:
    result = cgverify.sweep({**QUICK, "candidates": "faults:HeadsSwapped"}, tmp_path / "run", threads=1)
    with pytest.raises(
        AssertionError, match=r"codegen-nano blocks\.0\.attn, faults:HeadsSwapped.* mix is off by"
    ) as told:
        result.assert_ok()
    assert "cgverify all-components --model codegen-nano --component blocks.0.attn" in str(told.value)


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({**QUICK, "rotary_dims": 7}, "Nothing was compared: Hugging Face refuses"),
        ({**QUICK, "devices": "mps"}, "no mps device"),
    ],
)
def test_what_compared_nothing_or_could_not_be_run_is_not_ok(
    tmp_path: Path, plan: dict[str, object], told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        cgverify.sweep(plan, tmp_path / "run", threads=1).assert_ok()


def test_a_run_that_was_interrupted_is_not_ok(tmp_path: Path) -> None:
    cgverify.sweep(QUICK, tmp_path / "run", threads=1)
    run, results = read(tmp_path / "run")
    folder, _ = RunFolder.resume(tmp_path / "run", run)
    folder.forget([results[1].cell])
    folder.close()
    with pytest.raises(AssertionError, match="Only 3 of 4 cells were verified"):
        cgverify.load_run(tmp_path / "run").assert_ok()


def test_an_older_run_is_loaded() -> None:
    result = cgverify.load_run(SCHEMA_1)
    assert result.ok
    assert len(result.findings) == 12


def test_loading_a_run_needs_no_torch() -> None:
    script = f"import sys, cgverify; print(cgverify.load_run({str(SCHEMA_1)!r}).ok, 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True False\n"


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'models'"):
        cgverify.sweep({"model": "codegen-nano"})
    with pytest.raises(UnknownNameError, match="Unknown keep_tensors 'some'"):
        cgverify.sweep(QUICK, keep_tensors="some")
    with pytest.raises(RunFolderError, match="holds no run"):
        cgverify.load_run(tmp_path)


def test_importing_cgverify_is_quick_and_every_name_is_there() -> None:
    script = "import sys, cgverify; print(sorted({'torch', 'pandas', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
    for name in cgverify.__all__:
        assert getattr(cgverify, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cgverify.nothing  # noqa: B018
