"""Versions, machine, threads and numerics flags: all that may decide a bit, recorded in every run."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("cgverify", "torch", "transformers", "transformer_lens", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Installed version of each package that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """System, processor model and number of processors that this process may use."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def prefer_huge_pages() -> None:
    """Let torch ask for huge pages, into which weights are copied faster. Before torch is imported."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import torch and what stands on it without garbage collections, and leave all that out of later ones.

    A million objects are made that stay until the end; each collection on the way would look at all there are so far.
    Nothing happens where torch is imported already.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def pin_numerics(threads: int | None) -> dict[str, Any]:
    """Set the number of threads, switch every reduced-precision shortcut off, and return the flags in force.

    The bounds assume products that accumulate in float32 (docs/verdict.md); TF32 and 16-bit reductions do not.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    return {
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "tf32": False,
        "reduced_precision_reduction": False,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
