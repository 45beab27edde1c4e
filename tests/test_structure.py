"""Imports run one way, and what must start quickly imports little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cgverify"
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
HEAVY = {"torch", "transformers", "transformer_lens", "pandas"}
COMMANDS = (
    *("all-components", "attention", "sweep", "watch", "merge", "compare", "report", "baseline", "selftest", "bench"),
    *("models", "env"),
)


def test_imports_keep_the_contracts() -> None:
    done = subprocess.run([LINT_IMPORTS], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ["cli", "plan", "common"])
def test_light_rooms_import_no_heavy_package_at_the_top(room: str) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:  # a function may import what it needs
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not HEAVY & {name.split(".")[0] for name in names}, path


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from cgverify.cli.app import app\n"
        f"for arguments in [[], *([command] for command in {COMMANDS!r})]:\n"
        "    try:\n"
        "        app([*arguments, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (arguments, end.code)\n"
        f"    print('heavy:', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage") == done.stdout.count("heavy: []") == 1 + len(COMMANDS)
