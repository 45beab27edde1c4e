"""stdout is the report's, and comes back as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, os, sys
from cgverify.common.streams import stdout_is_ours
print("before", end=" ")
with stdout_is_ours():
    print("python")
    os.write(1, b"system\\n")
    ctypes.CDLL(None).puts(b"c")
    sys.__stdout__ and sys.__stdout__.write("kept reference\\n")
    os.system("echo child")
print("after")
"""
FOREIGN = ["python", "system", "c", "kept reference", "child"]


def run(redirections: str, script: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirections}', sys.executable, script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_others_write_goes_to_stderr_and_ours_stays_in_order() -> None:
    done = run("")
    assert (done.returncode, done.stdout) == (0, "before after\n")
    assert sorted(done.stderr.splitlines()) == sorted(FOREIGN)


def test_it_is_lost_where_stderr_is_closed() -> None:
    assert run("2>&-").stdout == "before after\n"


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-"])
def test_where_stdout_is_closed_descriptor_one_may_be_a_file(redirections: str, tmp_path: Path) -> None:
    script = f"""
from cgverify.common.streams import stdout_is_ours
with open({str(tmp_path / "file")!r}, "w", buffering=1) as file, stdout_is_ours():
    print("python")
    print(file.fileno(), file=file)
"""
    done = run(redirections, script)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "file").read_text() == "1\n"
