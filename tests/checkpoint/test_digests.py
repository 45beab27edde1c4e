"""Digests of files, started before they are needed."""

import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cgverify.checkpoint import digests
from cgverify.checkpoint.digests import digests_of, start_digests
from cgverify.cli import running
from cgverify.plan.axes import Axes
from cgverify.runs.request import ExecutionOptions, one_checkpoint


@pytest.fixture
def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_digest_is_that_of_the_whole_file(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "CHUNK", 1000)
    assert digests_of([weights]) == [hashlib.sha256(weights.read_bytes()).digest()]


def test_started_digest_is_used_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_digests([(str(weights.parent), "auto")])
    while any(not future.done() for future in digests._ahead.values()):
        pass
    monkeypatch.setattr(digests, "_digest", lambda _: b"computed anew")
    assert digests_of([weights]) == [hashlib.sha256(weights.read_bytes()).digest()]
    assert digests_of([weights]) == [b"computed anew"]


def test_file_changed_after_the_start_is_read_again(weights: Path) -> None:
    start_digests([(str(weights.parent), "auto")])
    weights.write_bytes(b"other")
    assert digests_of([weights]) == [hashlib.sha256(b"other").digest()]


def test_no_thread_is_left_that_would_prevent_a_fork(weights: Path) -> None:
    before = threading.active_count()
    start_digests([(str(weights.parent), "auto"), (str(weights.parent), "pretrained"), ("no-such-model", "auto")])
    digests_of([weights])
    assert threading.active_count() == before


def test_command_starts_digests_before_its_imports(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []

    def import_libraries(_: int) -> None:
        started.extend(path for path, *_ in digests._ahead)
        raise InterruptedError

    monkeypatch.setattr(running, "import_libraries", import_libraries)
    request = one_checkpoint("all-components", str(weights.parent), "auto", Axes())
    options: Any = SimpleNamespace(verbose=0)
    with pytest.raises(InterruptedError):
        running.carry_out(request, ExecutionOptions(), options)
    assert weights in started
    digests_of([weights])
