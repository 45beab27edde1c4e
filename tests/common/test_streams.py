"""Output of other code goes to stderr, and stdout is restored afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, os, sys
from cgverify.common.streams import stdout_to_stderr
print("before", end=" ")
with stdout_to_stderr():
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


def test_output_of_other_code_goes_to_stderr_in_order() -> None:
    done = run("")
    assert (done.returncode, done.stdout) == (0, "before after\n")
    assert sorted(done.stderr.splitlines()) == sorted(FOREIGN)


def test_output_of_other_code_is_lost_if_stderr_is_closed() -> None:
    assert run("2>&-").stdout == "before after\n"


@pytest.mark.parametrize("redirections", [">&-", ">&- 2>&-"])
def test_file_on_descriptor_one_is_untouched_if_stdout_is_closed(redirections: str, tmp_path: Path) -> None:
    script = f"""
from cgverify.common.streams import stdout_to_stderr
with open({str(tmp_path / "file")!r}, "w", buffering=1) as file, stdout_to_stderr():
    print("python")
    print(file.fileno(), file=file)
"""
    done = run(redirections, script)
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "file").read_text() == "1\n"
