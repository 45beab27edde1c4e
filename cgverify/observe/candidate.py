"""The candidate that `--bridge` names: find it, boot it, and clean up after its code."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import inspect
import itertools
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter

from cgverify.bridge.booting import CodeGenAdapter, adapter_with, bridge_from
from cgverify.checkpoint.out_of_view import add_blocks_out_of_view, has_memory
from cgverify.common.errors import CandidateError
from cgverify.common.printable import message_of
from cgverify.observe.fault import calls_a_side
from cgverify.observe.generations import installed

BUILT_IN: dict[str, type[ArchitectureAdapter]] = {
    "cgverify": CodeGenAdapter,
    "transformer_lens": CodeGenArchitectureAdapter,
}


@dataclass(frozen=True)
class Candidate:
    """A bridge implementation under test."""

    name: str
    adapter: type[ArchitectureAdapter]
    change: Callable[[Any], Any] | None = None
    """A function that changes the booted bridge and returns it."""
    source: str = ""
    """The digest of the file that it was imported from; empty if it is built in and so identified by its version."""
    takes_model: bool = False
    """Whether its code is given a whole model or bridge, in which it must find every block of the checkpoint."""

    @calls_a_side
    def boot(self, model: nn.Module) -> Any:
        """Boot a bridge over a model, which is changed in place. Its blocks are those whose weights have memory.

        The candidate wraps no block without memory, because it may look at the weights. A function and an adapter are
        given all blocks of the checkpoint nevertheless: those out of view are on the meta device.

        Raises:
            CandidateError: the function returned something that is not a bridge.
            BaseException: the candidate raised it.
        """
        if self.takes_model:
            add_blocks_out_of_view(model)
        if self.change is None:
            return bridge_from(model, _in_view(self.adapter))
        present = [has_memory(block) for block in cast(Any, model).transformer.h]
        bridge: Any = self.change(bridge_from(model, self.adapter))
        if not isinstance(bridge, TransformerBridge):
            raise CandidateError(
                f"--bridge {self.name} returned {type(bridge).__name__} instead of a bridge: return the bridge."
            )
        if not all(present):
            bridge.blocks = nn.ModuleList(itertools.compress(cast(Any, bridge).blocks, present))
        return bridge


def _in_view(adapter: type[ArchitectureAdapter]) -> type[ArchitectureAdapter]:
    """Return an adapter that prepares a model as another one does, and then leaves out the blocks without memory."""

    class InView(adapter):  # type: ignore[misc]
        def prepare_model(self, hf_model: Any) -> None:
            super().prepare_model(hf_model)
            blocks = hf_model.transformer.h
            if not all(map(has_memory, blocks)):
                hf_model.transformer.h = nn.ModuleList(filter(has_memory, blocks))

    return InView


@contextlib.contextmanager
def restore_working_directory() -> Iterator[None]:
    """Restore the working directory after candidate code has run: the user's paths are relative to it."""
    with contextlib.chdir(os.curdir):
        yield


@contextlib.contextmanager
def free_bridge_afterwards() -> Iterator[None]:
    """Restore the working directory after a candidate was booted and run, and free its bridge.

    A bridge and its components refer to each other, so that they and their copy of the weights in view would otherwise
    be freed only by chance, many views later.
    """
    with restore_working_directory():
        yield
    gc.collect()


def find_candidate(name: str) -> Candidate:
    """Return the candidate of a `--bridge`.

    Args:
        name: `cgverify`, `transformer_lens`, or `module:name`, where name is an attention bridge class, an
            `ArchitectureAdapter` subclass, or a function that takes a booted bridge and returns it. Modules are also
            looked for in the current folder.

    Raises:
        CandidateError: it cannot be imported, or is none of these.
        CgverifyError: Hugging Face's CodeGen is of an unknown generation, with which nothing can be verified.
    """
    installed()  # before anything that Hugging Face's code raises could count as a finding
    if name in BUILT_IN:
        return Candidate(name, BUILT_IN[name])
    found = _import(name)
    source = _digest(found)
    if isinstance(found, type):
        if issubclass(found, ArchitectureAdapter):
            return Candidate(name, found, source=source, takes_model=True)
        if issubclass(found, GeneralizedComponent):
            return Candidate(name, adapter_with(found), source=source)
    elif callable(found):
        return Candidate(name, CodeGenAdapter, change=found, source=source, takes_model=True)
    raise CandidateError(
        f"--bridge {name} is not a bridge: give an attention bridge class, an ArchitectureAdapter subclass, or a "
        "function that takes a booted bridge and returns it."
    )


def _digest(found: object) -> str:
    """Return the digest of the source in which an object was defined; empty if it has none.

    The source is a file, or the cell of a notebook, which is only in Python's cache of lines.
    """
    try:
        file = inspect.getsourcefile(found)  # type: ignore[arg-type]
    except (TypeError, OSError):  # built into Python, or a class of a notebook
        codes = [getattr(one, "__code__", None) for one in getattr(found, "__dict__", {}).values()]
        file = next((code.co_filename for code in codes if code is not None), None)
    if file is None:
        return ""
    source = Path(file).read_bytes() if Path(file).is_file() else "".join(linecache.getlines(file)).encode()
    return hashlib.sha256(source).hexdigest()[:16] if source else ""


@restore_working_directory()
def _import(name: str) -> Any:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise CandidateError(f"--bridge {name}: give {', '.join(BUILT_IN)}, or module:name.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file of the user must not replace a library's module
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs the user's code, which may raise anything
        raise CandidateError(
            f"--bridge {name} cannot be imported: {type(error).__name__}: {message_of(error)}"
        ) from error
    return found
