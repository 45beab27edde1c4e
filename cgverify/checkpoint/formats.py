"""Read single tensors from a file of weights. Files are mapped and not loaded, and no code in them is ever run."""

from __future__ import annotations

import pickle
import threading
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from cgverify.common.errors import WeightsError

STORED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights that are read, as they are stored."""

MOST_MAPPED = 1 << 27
"""Bytes that are read through one mapping of a `.bin`. Pages that were read stay in memory as long as the mapping."""


class TensorFile(Protocol):
    """A file of named tensors."""

    path: Path
    names: tuple[str, ...]

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        """Return a tensor in its stored dtype, contiguous, in its own memory.

        That memory is aligned to 64 bytes. A tensor in a mapped file may be at any address, and alignment decides which
        kernel runs.

        Raises:
            WeightsError: the tensor is missing or unreadable, or has another shape, or a dtype not in `STORED_DTYPES`.
        """
        ...


def open_tensors(path: Path) -> TensorFile:
    """Open a file of weights. Its suffix decides the format."""
    return PickleFile(path) if path.suffix == ".bin" else SafetensorsFile(path)


class SafetensorsFile:
    """A `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.names = tuple(file.keys())
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"Cannot read {path}: {error}. Fetch the file again.") from error

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        try:
            with safe_open(self.path, framework="pt") as file:
                return _copied(file.get_tensor(name), name, shape, self.path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"Cannot read {name} from {self.path}: {error}. Fetch the file again.") from error


class PickleFile:
    """A `.bin` file: a state dict as `torch.save` writes it since PyTorch 1.6."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = _mapped(path)
        self._bytes_read = 0
        self._lock = threading.Lock()
        self.names = tuple(self._tensors)

    def read(self, name: str, shape: torch.Size) -> torch.Tensor:
        with self._lock:  # several threads read a view's tensors
            mapped = self._tensors or _mapped(self.path)
            self._tensors = mapped
        if name not in mapped:
            raise WeightsError(f"Cannot read {name} from {self.path}: it is not in the file. Fetch the file again.")
        tensor = _copied(mapped[name], name, shape, self.path)
        with self._lock:
            self._bytes_read += tensor.nbytes
            if self._bytes_read > MOST_MAPPED:
                self._tensors, self._bytes_read = {}, 0
        return tensor


def _mapped(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.bin`, in mapped memory."""
    try:
        if path.stat().st_size and not zipfile.is_zipfile(path):
            raise WeightsError(
                f"{path} is not an archive as torch.save writes it since PyTorch 1.6: it is damaged (fetch it again), "
                "or so old that it must be saved again."
            )
        found: Any = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} contains more than tensors, which could run code when it is loaded, so it is not loaded: "
            "use safetensors, or convert it on a machine where it may run."
        ) from error
    except Exception as error:  # damaged bytes may raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"Cannot read {path}: {reason}. Fetch the file again.") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise WeightsError(f"{path} is not a state dict: it contains more than named tensors.")
    return {str(name): tensor for name, tensor in found.items()}


def _copied(tensor: torch.Tensor, name: str, shape: torch.Size, path: Path) -> torch.Tensor:
    """Return a contiguous copy of a tensor after checking its kind and shape."""
    if tensor.dtype not in STORED_DTYPES or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
        raise WeightsError(
            f"{name} in {path} is stored as {kind}: cgverify reads dense weights in "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in STORED_DTYPES)}."
        )
    if tensor.shape != shape:
        raise WeightsError(
            f"{name} in {path} has shape {list(tensor.shape)} and config.json says {list(shape)}: the weights "
            "and the config belong to different models."
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)
