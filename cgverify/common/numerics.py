"""Versions, machine, threads and flags of torch: everything that may decide a bit. Recorded in every run."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from cgverify.common.devices import accelerator_name
from cgverify.common.processors import processors

PACKAGES = ("cgverify", "torch", "transformers", "transformer_lens", "safetensors", "numpy")

SHORTCUTS = ("tf32", "bfloat16", "reduction")
"""What products may be allowed to leave out. How much bounds then widen is in `cgverify/oracle/shortcuts.py`."""


def versions() -> dict[str, str]:
    """Return the installed version of each package that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Return the system, the processor's model and the number of processors that this process may use."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": processors(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def pin_numerics(threads: int | None, allow: Collection[str] = ()) -> dict[str, Any]:
    """Set the number of threads, switch every shortcut of torch's products on or off, and return the flags in force.

    Args:
        threads: None leaves the number as it is, but no more than there are processors unless OMP_NUM_THREADS is set.
        allow: the `SHORTCUTS` to switch on.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), processors())
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
        "allowed": sorted(set(allow)),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "onednn_float32": onednn.matmul.fp32_precision,
        "tf32": products.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "reduced_precision_reduction": "reduction" in allow,
        "fp16_accumulation": products.allow_fp16_accumulation,
        "sdpa": _sdpa_kernels(torch.backends.cuda),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": accelerator_name(),
    }


def _sdpa_kernels(backend: Any) -> list[str]:
    """Return the enabled kernels of scaled dot-product attention. A candidate may use them; Hugging Face's does not."""
    enabled = {
        "flash": backend.flash_sdp_enabled(),
        "memory-efficient": backend.mem_efficient_sdp_enabled(),
        "math": backend.math_sdp_enabled(),
        "cudnn": backend.cudnn_sdp_enabled(),
    }
    return [name for name, on in enabled.items() if on]
