"""Digests of the files of weights. This needs no torch, so that large files are read while torch is imported."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from cgverify.checkpoint.disk import folder_on_disk
from cgverify.checkpoint.files import weight_files
from cgverify.common.errors import WeightsError
from cgverify.common.processors import processors

CHUNK = 1 << 24
"""Bytes that are read at once. After each chunk a thread waits for Python's lock, which an import holds for long."""

_Version = tuple[Path, int, int]
"""A file with its size and the time of its last change."""

_ahead: dict[_Version, Future[bytes]] = {}
_threads: list[threading.Thread] = []
_reading = threading.BoundedSemaphore(processors())


def start_digests(models: Iterable[tuple[str, str]]) -> None:
    """Start to compute, in threads, the digests that `resolve` will need for models with their `--weights`.

    A model that cannot be read is left to `resolve`, which says why.
    """
    for model, weights in models:
        folder = None if weights.startswith("random") else folder_on_disk(model, weights)
        with contextlib.suppress(WeightsError, OSError):
            if folder is not None:
                _ahead.update((_version(path), _started(path)) for path in weight_files(folder).paths)


def digests_of(paths: Sequence[Path]) -> list[bytes]:
    """Return the SHA-256 of each file. One that was started is used once, and only if the file is as it was then.

    Raises:
        OSError: a file cannot be read.
    """
    versions = {path: _version(path) for path in paths}
    futures = [_ahead.pop(own) if own in _ahead else _started(path) for path, own in versions.items()]
    found = [future.result() for future in futures]
    while _threads:  # a process with a second thread cannot be forked
        _threads.pop().join()
    return found


def _started(path: Path) -> Future[bytes]:
    future: Future[bytes] = Future()

    def work() -> None:
        try:
            with _reading:
                future.set_result(_digest(path))
        except Exception as error:  # raised where the digest is asked for
            future.set_exception(error)

    _threads.append(threading.Thread(target=work, daemon=True))  # nothing waits for it if the program ends early
    _threads[-1].start()
    return future


def _version(path: Path) -> _Version:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _digest(path: Path) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(buffer):
            digest.update(buffer[:length])
    return digest.digest()
