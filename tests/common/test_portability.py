"""Nothing needs what only POSIX has: Windows and macOS lack modules, signals, flags and ways to start a process."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT
from without_posix import POSIX_MODULES

from cgverify.common.streams import use_utf8

POSIX_NAMES = {
    "mmap": ("MADV_", "MAP_", "PROT_"),
    "os": (
        *("chown", "fork", "get", "kill", "mkfifo", "nice", "pidfd", "posix_", "sched_", "set", "statvfs", "sysconf"),
        *("uname", "wait"),
    ),
    "signal": ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR", "alarm", "pthread_", "set"),
}
"""Beginnings of names that a module may lack."""
EVERYWHERE = {"get_exec_path", "get_terminal_size", "getcwd", "getenv", "getpid", "getppid", "kill"} | {
    "waitpid",
    "waitstatus_to_exitcode",
}
SOURCES = sorted((ROOT / "cgverify").rglob("*.py"))


LINUX_FILES = {"control_groups.py", "memory.py", "numerics.py", "peak_memory.py", "processors.py"}
"""Modules that read files of Linux's own, which are ASCII."""


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.AST]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_package_needs_nothing_that_only_posix_has(trees: dict[Path, ast.AST]) -> None:
    for path, tree in trees.items():
        guarded = {ast.unparse(call.args[0]) for call in _calls(tree) if ast.unparse(call.func) == "hasattr"}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not POSIX_MODULES & {name.split(".")[0] for name in names}, (path, ast.unparse(node))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in POSIX_NAMES:
                lacking = node.attr.startswith(POSIX_NAMES[node.value.id]) and node.attr not in EVERYWHERE
                assert not lacking or node.value.id in guarded, (path, ast.unparse(node))


def test_package_reads_and_writes_utf8_with_plain_line_ends(trees: dict[Path, ast.AST]) -> None:
    """Windows has other defaults, and the same command writes the same bytes everywhere."""
    needed = {"read_text": "encoding", "write_text": "encoding", "to_csv": "lineterminator"}
    for path, tree in trees.items():
        for call in _calls(tree):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if name in needed and path.name not in LINUX_FILES:
                assert needed[name] in {keyword.arg for keyword in call.keywords}, (path, ast.unparse(call))


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize(("variable", "written"), [(None, "Δ".encode()), ("cp1252", b"?")])
def test_pipe_gets_utf8_unless_told_otherwise(
    variable: str | None, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="cp1252", errors="replace"))
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if variable:
        monkeypatch.setenv("PYTHONIOENCODING", variable)
    use_utf8()
    sys.stdout.write("Δ")
    sys.stdout.flush()
    assert buffer.getvalue() == written


@pytest.mark.slow
def test_sweep_with_two_jobs_passes_without_posix(tmp_path: Path) -> None:
    script = ROOT / "tests" / "support" / "without_posix.py"
    done = subprocess.run(
        [sys.executable, script, "sweep", "smoke", "--jobs", "2", "--output", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert " cells, " in done.stdout
