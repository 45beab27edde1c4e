"""A second device, `sim`, on every machine: torch's way for devices that are developed outside of torch (PrivateUse1).

`built` compiles simulated_device.cpp once for a version of torch, which takes half a minute, and returns a folder. A
process with that folder in its PYTHONPATH has the device as soon as torch is imported, through torch's entry point for
such devices. A device cannot be removed from a process, so tests use it in processes of their own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock
from torch.utils.backend_registration import rename_privateuse1_backend

SOURCE = Path(__file__).with_suffix(".cpp")
NAME = "sim"
LIBRARY = f"build/{NAME}.so"


def missing_tools() -> list[str]:
    """Return the programs that `built` needs and this machine does not have."""
    return [tool for tool in ("g++", "ninja") if shutil.which(tool, path=_search_path()) is None]


def built() -> Path:
    """Return the folder of the compiled device, which is kept for later runs in the system's temporary folder."""
    key = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {sys.version}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cgverify-{NAME}-{os.getuid()}-{key}"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):  # several workers may need it at the same time
        if not (folder / "done").exists():
            _compile(folder)
    return folder


def _compile(folder: Path) -> None:
    from torch.utils.cpp_extension import load  # slow to import

    library = folder / LIBRARY
    shutil.rmtree(library.parent, ignore_errors=True)  # a build that was interrupted leaves a lock there
    library.parent.mkdir()
    given, os.environ["PATH"] = os.environ["PATH"], _search_path()
    try:
        load(NAME, [str(SOURCE)], ["-O1"], build_directory=str(library.parent), is_python_module=False)
    finally:
        os.environ["PATH"] = given
    metadata = folder / f"{SOURCE.stem}-1.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {SOURCE.stem}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[torch.backends]\n{NAME} = {SOURCE.stem}:register\n")
    (folder / "done").touch()


def _search_path() -> str:
    """Return the PATH with the programs of this environment, of which ninja may be one."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def register() -> None:
    """Make the device known to torch, which calls this at the end of its own import."""
    torch.ops.load_library(str(distribution(SOURCE.stem).locate_file(LIBRARY)))
    rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())


def _module() -> ModuleType:
    """Return `torch.sim`, with the functions that torch asks of such a module. Random numbers are the CPU's."""
    module = ModuleType(f"torch.{NAME}")
    functions: dict[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "current_device": lambda: 0,
        "_is_in_bad_fork": lambda: False,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    if os.environ.get("SIM_WITHOUT") != "random":
        functions |= {
            "manual_seed_all": torch.default_generator.manual_seed,
            "get_rng_state": lambda _device=NAME: torch.get_rng_state(),
            "set_rng_state": lambda state, _device=NAME: torch.set_rng_state(state),
        }
    vars(module).update(functions)
    return module
