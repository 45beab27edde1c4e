"""The devices of this machine, by torch's names: `cpu`, `cuda`, `cuda:1`, `mps`, or that of a backend.

torch has at most one type of accelerator, whose devices are numbered. Functions import torch when they are called.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cgverify.common.errors import DeviceError

if TYPE_CHECKING:
    import torch

NO_DEVICE = "torch knows no such device: write cpu, cuda, cuda:1, mps, or what another backend is called"


def device_name(text: str) -> str | None:
    """Return the name of a device as cells have it, or None if torch does not know such a type of device.

    `cuda` is the current one of several devices. Any index of the CPU is the same CPU.
    """
    if text == "cpu":
        return text  # torch takes seconds to import
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        return None
    return "cpu" if device.type == "cpu" else text


def present_devices() -> tuple[str, ...]:
    """Return the names of this machine's devices, with their indices: cpu, cuda:0 and cuda:1."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ("cpu",)
    return ("cpu", *(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())))


def accelerator_name() -> str | None:
    """Return the model of this machine's accelerator, or its type if torch does not know more; None without one."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    module = torch.get_device_module(accelerator)
    return str(module.get_device_name()) if hasattr(module, "get_device_name") else accelerator.type


def require_devices(names: Iterable[str]) -> None:
    """Raise DeviceError for the first device that this machine does not have."""
    present = present_devices()
    for name in names:
        if name not in present and f"{name}:0" not in present:
            raise DeviceError(
                f"This machine has no {name} device: torch finds {', '.join(present)}. Choose another --device, or run "
                "where there is one."
            )


def require_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Raise DeviceError if a device has no tensors of a dtype, as MPS has none in float64."""
    import torch

    try:
        torch.empty(1, dtype=dtype, device=device)
    except (TypeError, RuntimeError) as error:
        name = str(dtype).removeprefix("torch.")
        raise DeviceError(f"The {device} device has no {name} ({str(error).splitlines()[0]}): leave it out.") from error


def synchronize() -> None:
    """Wait until every device has finished what it was given."""
    import torch

    if torch.accelerator.is_available():
        for index in range(torch.accelerator.device_count()):
            torch.accelerator.synchronize(index)
