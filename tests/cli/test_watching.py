"""What a terminal shows of a run, in the terminal that carries it out and in another one."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, fork

COLUMNS = 120
RUN = (
    *("all-components", "--model", "codegen-nano", "--layers", "0-2", "--bridge", "candidate:Faulty"),
    *("--case", "default", "--jobs", "1"),
)
FAULT = "diverged blocks.0.attn, candidate:Faulty in float32, case default"
CANDIDATE = """
import time
from cgverify import CodeGenAttentionBridge

class Faulty(CodeGenAttentionBridge):
    def forward(self, *args, **kwargs):
        time.sleep(0.15)  # longer than the time between two pictures of the progress
        output, *rest = super().forward(*args, **kwargs)
        return output * 1.01, *rest
"""


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        self.path = Path(os.ttyname(self._theirs))
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self._written += os.read(self._ours, 1 << 16)
            except OSError:  # the other end is closed
                return

    def close(self) -> None:
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._written.decode())


@pytest.fixture(autouse=True)
def candidate(tmp_path: Path) -> None:
    (tmp_path / "candidate.py").write_text(CANDIDATE)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.02)


def run_on(terminal: Terminal, *arguments: str, cwd: Path) -> int | None:
    environment = {"TERM": "xterm", "COLUMNS": str(COLUMNS)}
    process = fork(*arguments, cwd=cwd, output=cwd / "output", errors=terminal.path, environment=environment)
    process.join(120)
    return process.exitcode


def test_terminal_shows_cell_time_left_and_faults_at_once(terminal: Terminal, tmp_path: Path) -> None:
    assert run_on(terminal, *RUN, cwd=tmp_path) == 1
    text = terminal.text
    assert text.count(FAULT) == 1, "later cells have the same fault"
    before, after = text.split(FAULT)
    assert re.search(r"(blocks\.0\S*|comparing with the oracle) .* 1/33 0:00:\d\d [-:\d]+ left", before)
    assert re.search(r"blocks\.[12]\S* .*\d+/33 0:00:\d\d [-:\d]+ left \d faults?", after)
    assert all(len(line.rstrip()) <= COLUMNS for line in re.split("[\r\n]+", text) if "left" in line)


def test_run_is_watched_from_another_terminal(terminal: Terminal, tmp_path: Path) -> None:
    process = fork(*RUN, "--output", "run", "-q", cwd=tmp_path, output=tmp_path / "first")
    wait_for(tmp_path / "run" / "run.json")
    assert process.is_alive()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert run_on(terminal, "watch", "run", cwd=tmp_path) == 1
    assert FAULT in terminal.text
    process.join(60)
    assert set(before) <= {"plan.jsonl", "run.json", ".lock", "findings.jsonl"}
    last = (tmp_path / "first").read_text().splitlines()[-1]
    assert (tmp_path / "output").read_text().splitlines() == [last]


def test_finished_run_is_not_waited_for(cli: Cli, tmp_path: Path) -> None:
    whole = cli("all-components", "--model", "codegen-nano", "--component", "embed", "--output", "run")
    watched = cli("watch", "run")
    assert (watched.returncode, watched.stderr) == (0, "")
    assert watched.stdout.strip() == whole.stdout.splitlines()[-1]
    assert "holds no run" in cli("watch", "nowhere").stderr


def test_run_that_ended_early_is_not_waited_for(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN, "--exitfirst", "--output", "run")
    watched = cli("watch", "run")
    assert watched.returncode == 1
    assert re.fullmatch(r"The run has ended after \d+ of 33 cells\.\n", watched.stderr)
