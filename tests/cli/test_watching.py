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
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
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
from pathlib import Path
from cgverify import CodeGenAttentionBridge
from rich.progress import Progress

update = Progress.update
Progress.update = lambda *args, **kwargs: update(*args, **kwargs, refresh=True)  # draw every change, not ten a second

class Faulty(CodeGenAttentionBridge):
    def forward(self, *args, **kwargs):
        while Path("wait").exists():
            time.sleep(0.01)
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


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start_on(terminal: Terminal, *arguments: str, cwd: Path) -> BaseProcess:
    environment = {"TERM": "xterm", "COLUMNS": str(COLUMNS)}
    return fork(*arguments, cwd=cwd, output=cwd / "output", errors=terminal.path, environment=environment)


def test_terminal_shows_cell_time_left_and_faults_at_once(terminal: Terminal, tmp_path: Path) -> None:
    process = start_on(terminal, *RUN, cwd=tmp_path)
    process.join(120)
    assert process.exitcode == 1
    text = terminal.text
    assert text.count(FAULT) == 1, "later cells have the same fault"
    before, after = text.split(FAULT)
    assert re.search(r"(blocks\.0\S*|comparing with the oracle) .* 1/33 0:00:\d\d [-:\d]+ left", before)
    assert re.search(r"blocks\.[12]\S* .*\d+/33 0:00:\d\d [-:\d]+ left \d faults?", after)
    assert all(len(line.rstrip()) <= COLUMNS for line in re.split("[\r\n]+", text) if "left" in line)


def test_run_is_watched_from_another_terminal(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    process = fork(*RUN, "--output", "run", "-q", cwd=tmp_path, output=tmp_path / "first")
    wait_until((tmp_path / "run" / "run.json").exists)
    watching = start_on(terminal, "watch", "run", cwd=tmp_path)
    wait_until(lambda: " left" in terminal.text)
    assert FAULT not in terminal.text
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"plan.jsonl", "run.json", ".lock", "findings.jsonl"}
    (tmp_path / "wait").unlink()
    for each in (watching, process):
        each.join(120)
        assert each.exitcode == 1
    assert FAULT in terminal.text
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
