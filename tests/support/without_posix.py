"""Run the command line where what only POSIX has is hidden from cgverify, as on Windows: `python without_posix.py …`.

A worker process imports this file again, so that the same is hidden there.
"""

from __future__ import annotations

import builtins
import ctypes
import mmap
import multiprocessing
import os
from types import SimpleNamespace
from typing import Any

POSIX_MODULES = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}

_import: Any = builtins.__import__
_library: Any = ctypes.CDLL


def _import_as_on_windows(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("cgverify") and name.split(".")[0] in POSIX_MODULES:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return _import(name, globals, *rest, **named)


def _library_as_on_windows(name: str | None = None, *rest: Any, **settings: Any) -> Any:
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    if name == "ucrtbase":
        return SimpleNamespace(fflush=_library(None).fflush)
    return _library(name, *rest, **settings)


def hide() -> None:
    import torch  # noqa: F401  it may use what is hidden below

    for place, name, value in (
        (builtins, "__import__", _import_as_on_windows),
        (ctypes, "CDLL", _library_as_on_windows),
        (multiprocessing, "get_all_start_methods", lambda: ["spawn"]),
    ):
        setattr(place, name, value)
    del os.sched_getaffinity
    for name in [name for name in dir(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))]:
        delattr(mmap, name)


if __name__ in ("__main__", "__mp_main__"):
    hide()

if __name__ == "__main__":
    from cgverify.__main__ import main

    main()
