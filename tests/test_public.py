"""What `import cgverify` offers: few names, each found when it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from made_records import a_finding, a_result, a_run

import cgverify
from cgverify.api import Result
from cgverify.bridge import CodeGenAttentionBridge
from cgverify.common.records import Verdict
from cgverify.runs.baseline import StoredRun, accept


def test_every_exported_name_exists_and_is_documented() -> None:
    for name in cgverify.__all__:
        assert getattr(cgverify, name)
        assert name.startswith("__") or getattr(cgverify, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'compare_run'"):
        _ = cgverify.compare_run


def test_importing_cgverify_imports_nothing_heavy() -> None:
    script = "import cgverify, sys; print({'torch', 'pandas', 'transformers', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_comparing_runs_needs_no_torch(tmp_path: Path) -> None:
    accept(StoredRun(a_run(), [a_result()]), tmp_path / "kept", "")
    script = (
        "import cgverify, sys\n"
        f"same = cgverify.compare_runs({str(tmp_path / 'kept')!r}, {str(tmp_path / 'kept')!r})\n"
        "print(same.cells, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_the_bridge_is_exported() -> None:
    assert cgverify.CodeGenAttentionBridge is CodeGenAttentionBridge


def test_results_are_compared_as_they_are() -> None:
    before = Result(a_run(), (a_result(),), None, 1)
    after = Result(a_run(), (a_result(a_finding(verdict=Verdict.DIVERGED)),), None, 1)
    assert len(cgverify.compare_runs(before, after).worse) == 1


def test_runs_are_compared_from_python(tmp_path: Path) -> None:
    accept(StoredRun(a_run(), [a_result()]), tmp_path / "kept", "")
    now = StoredRun(a_run(), [a_result(a_finding(verdict=Verdict.DIVERGED))])
    (change,) = cgverify.compare_runs(tmp_path / "kept", now).worse
    assert (change.cell.component, change.finding.stage, change.fails) == ("blocks.0.attn", "mix", True)
