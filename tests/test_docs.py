"""The pages of docs/: each is short and in the site, and their commands and snippets run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from command_line import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MOST_LINES = 150
BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = {"bridge", "sweep", "testing"}
"""Pages whose snippets have tests of their own, which also check what they print."""


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of a page that a test must run."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for not_run, kind, text in found if kind == language and not not_run]


def command_lines(text: str) -> list[str]:
    """Return the command lines of a block, without comments."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def navigation(entries: Any) -> set[str]:
    if isinstance(entries, str):
        return {entries}
    values = entries.values() if isinstance(entries, dict) else entries
    return set().union(*(navigation(value) for value in values))


def test_every_page_is_short_and_in_the_site() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)
    assert {page.name for page in PAGES} == navigation(site["nav"])
    for page in PAGES:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, page


def test_every_option_in_the_pages_exists() -> None:
    from cgverify.cli.app import app

    group: Any = typer.main.get_command(app)
    for page in [*PAGES, ROOT / "README.md"]:
        shown = "".join(text for _, kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "sh")
        for line in re.findall(r"^cgverify ([a-z][^|>#\n]*)", shown.replace("\\\n", " "), re.MULTILINE):
            name, *words = shlex.split(line.split(" … ")[0])
            command = group.commands[name]
            if hasattr(command, "commands"):
                command = command.commands[words[0]]
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("-")} <= known, (page.name, line)


def test_generated_commands_page_has_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import document_commands

    page = document_commands.on_page_markdown(document_commands.MARK)
    assert page.count("## cgverify ") >= 12
    for option in ("`--rotary-dim DIM,…`", "`--exitfirst`, `-x`", "`--fail-on CHANGE,…`", "Default: `float32`."):
        assert option in page
    assert document_commands.on_page_markdown("another page") == "another page"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "sh") or blocks(page, "python")], ids=lambda page: page.stem
)
def test_commands_and_snippets_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """Run them in the page's order, with the bridges and runs that pages name. Some find a fault on purpose."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "bridge.py").write_text("from cgverify.bridge import CodeGenAttentionBridge as Bridge\n")
    for name in ("RUN", "OTHER"):
        shutil.copytree(ROOT / "reports" / "codegen-nano-cpu", tmp_path / name)
    (tmp_path / "cgverify").write_text(f'#!/bin/bash\nexec {sys.executable} -m cgverify "$@"\n')
    (tmp_path / "cgverify").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    if page.stem not in RUN_ELSEWHERE:
        for snippet in blocks(page, "python"):
            if saved := re.match(r"# (\w+\.py)\n", snippet):
                (tmp_path / saved[1]).write_text(snippet)
            else:
                subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=environment, check=True)
    for text in blocks(page, "sh"):
        for line in command_lines(text):
            done = subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode in (0, 1), (line, done.stderr)
