"""The house: imports run one way, and what must be quick imports little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cgverify"
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

HEAVY = {"torch", "transformers", "transformer_lens", "pandas"}


def imports(path: Path) -> set[str]:
    """Modules that a file names in import statements, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if room_of(path) not in ("__init__", "__main__"))


def test_imports_run_one_way() -> None:
    done = subprocess.run([LINT_IMPORTS], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_bridge_knows_nothing_of_verification() -> None:
    for path in (PACKAGE / "bridge").glob("*.py"):
        for module in imports(path):
            assert not module.startswith("cgverify.") or module.startswith("cgverify.bridge"), (path, module)


@pytest.mark.parametrize("room", ["cli"])
def test_light_rooms_name_no_heavy_package_at_the_top(room: str) -> None:
    for path in FILES:
        if room_of(path) != room:
            continue
        for node in ast.parse(path.read_text()).body:  # inside functions a command may import what it needs
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not HEAVY & {name.split(".")[0] for name in names}, path


COMMANDS = (
    *("all-components", "attention", "sweep", "merge", "compare", "report", "baseline", "selftest", "bench"),
    *("models", "env"),
)


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from cgverify.cli.app import app\n"
        "try:\n"
        f"    app([*{arguments!r}, '--help'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"
