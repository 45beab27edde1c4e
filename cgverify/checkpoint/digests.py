"""Digests of the files of weights. This needs no torch, so that large files are read while torch is imported."""

from __future__ import annotations

import contextlib
import hashlib
import queue
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


def start_digests(models: Iterable[tuple[str, str]]) -> None:
    """Start to compute, in threads, the digests that `resolve` will need for models with their `--weights`.

    A model that cannot be read is left to `resolve`, which says why.
    """
    for model, weights in models:
        folder = None if weights.startswith("random") else folder_on_disk(model, weights)
        with contextlib.suppress(WeightsError, OSError):
            if folder is not None:
                paths = weight_files(folder).paths
                _ahead.update(zip(map(_version, paths), _started(paths), strict=True))


def digests_of(paths: Sequence[Path]) -> list[bytes]:
    """Return the SHA-256 of each file. One that was started is used once, and only if the file is as it was then.

    Raises:
        OSError: a file cannot be read.
    """
    futures = {path: _ahead.pop(_version(path), None) for path in paths}
    others = [path for path, future in futures.items() if future is None]
    futures |= zip(others, _started(others), strict=True)
    found = [future.result() for future in futures.values() if future is not None]
    while _threads:  # a process with a second thread cannot be forked
        _threads.pop().join()
    return found


def _started(paths: Sequence[Path]) -> list[Future[bytes]]:
    waiting: queue.SimpleQueue[tuple[Path, Future[bytes]]] = queue.SimpleQueue()
    futures: list[Future[bytes]] = [Future() for _ in paths]
    for one in zip(paths, futures, strict=True):
        waiting.put(one)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                path, future = waiting.get_nowait()
                try:
                    future.set_result(_digest(path))
                except OSError as error:
                    future.set_exception(error)

    for _ in range(min(len(paths), processors())):
        _threads.append(threading.Thread(target=work, daemon=True))  # nothing waits for it if the program ends early
        _threads[-1].start()
    return futures


def _version(path: Path) -> _Version:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


def _digest(path: Path) -> bytes:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(buffer):
            digest.update(buffer[:length])
    return digest.digest()
