"""Versions, machine, threads and numerics flags: all that may decide a bit, recorded in every run."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import platform
import sys
import warnings
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

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


def keep_memory() -> None:
    """Have this process keep what it frees, in huge pages, so that no time depends on what the system gives anew.

    Before torch is imported. Nothing happens where the C library is not glibc.
    """
    prefer_huge_pages()
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_MAX, 0)
        tune(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h: how much free memory is left at the heap's end, and how many pieces may lie outside the heap."""


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


def hush_libraries() -> None:
    """Libraries warn of things that are no concern of the user's; -v lets them."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()


SHORTCUTS = ("tf32", "bfloat16", "reduction")
"""What products may be allowed to leave out; by how much bounds then widen is in `cgverify/oracle/shortcuts.py`."""

_allowed: frozenset[str] = frozenset()


def allowed() -> frozenset[str]:
    """The shortcuts that this process was pinned to: none, unless `pin_numerics` was told otherwise."""
    return _allowed


def pin_numerics(threads: int | None, allow: Collection[str] = ()) -> dict[str, Any]:
    """Set the number of threads, switch every shortcut of torch's products on or off, and return the flags in force.

    Args:
        threads: None leaves their number.
        allow: those of `SHORTCUTS` that are on. Bounds widen by them, whether or not the device takes them.
    """
    import torch

    global _allowed  # torch's flags, which it stands for, are the process's as well
    _allowed = frozenset(allow)
    if threads is not None:
        torch.set_num_threads(threads)
    operands = "medium" if "bfloat16" in allow else "high" if "tf32" in allow else "highest"
    torch.set_float32_matmul_precision(operands)  # CUDA's TF32 flag and the CPU's oneDNN follow it
    torch.backends.cudnn.allow_tf32 = "tf32" in allow
    products, onednn = torch.backends.cuda.matmul, cast(Any, torch.backends.mkldnn)
    products.allow_bf16_reduced_precision_reduction = products.allow_fp16_reduced_precision_reduction = (
        "reduction" in allow
    )
    products.allow_fp16_accumulation = False
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp("reduction" in allow)
    return {
        "threads": torch.get_num_threads(),
        "allowed": sorted(_allowed),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "onednn_float32": onednn.matmul.fp32_precision,
        "tf32": products.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "reduced_precision_reduction": "reduction" in allow,
        "fp16_accumulation": products.allow_fp16_accumulation,
        "sdpa": _sdpa(torch.backends.cuda),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _sdpa(backend: Any) -> list[str]:
    """The kernels of scaled dot-product attention that may run; Hugging Face's CodeGen has none, a candidate may."""
    enabled = {
        "flash": backend.flash_sdp_enabled(),
        "memory-efficient": backend.mem_efficient_sdp_enabled(),
        "math": backend.math_sdp_enabled(),
        "cudnn": backend.cudnn_sdp_enabled(),
    }
    return [name for name, on in enabled.items() if on]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
