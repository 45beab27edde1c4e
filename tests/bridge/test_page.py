"""The examples of docs/bridge.md print what their comments say, and the notebook runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_examples_of_the_page_print_their_comments(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of output is a comment: after the `print`, or below it."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "bridge.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/bridge.md", "exec"), names)
        expected = re.findall(r"^(?:print\(.*\)  )?# (.*)$", block, re.MULTILINE)
        assert expected
        assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_notebook_runs_and_draws() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(DOCS / "activation_patching.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.output_type == "error"]
