"""From `--bridge` to something that can stand beside the reference."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter

from cgverify.bridge.booting import CodeGenAdapter, adapter_with, bridge_from
from cgverify.common.errors import CandidateError
from cgverify.common.printable import said
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
    """Applied to the booted bridge."""
    source: str = ""
    """Digest of the file that it was imported from; empty for the built-in ones, whose version says enough."""

    def boot(self, model: nn.Module) -> Any:
        """A bridge over a model, which is changed in place.

        Raises:
            CandidateError: a function that does not return a bridge.
            BaseException: whatever the candidate raises.
        """
        bridge: Any = bridge_from(model, self.adapter)
        if self.change is not None:
            bridge = self.change(bridge)
        if not isinstance(bridge, TransformerBridge):
            raise CandidateError(
                f"--bridge {self.name} returned no bridge but {type(bridge).__name__}: return the bridge."
            )
        return bridge


@contextlib.contextmanager
def restore_working_directory() -> Iterator[None]:
    """Let a candidate do what it does, and be in the current folder again: paths that were given are relative to it."""
    with contextlib.chdir(os.curdir):
        yield


@contextlib.contextmanager
def visit() -> Iterator[None]:
    """Let a candidate boot and run, be here again, and free what it booted.

    A bridge and its components hold each other, and with them its copy of the weights in view: by chance alone they
    would stay for many views.
    """
    with restore_working_directory():
        yield
    gc.collect()


def find_candidate(name: str) -> Candidate:
    """The candidate of a `--bridge`.

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
            return Candidate(name, found, source=source)
        if issubclass(found, GeneralizedComponent):
            return Candidate(name, adapter_with(found), source=source)
    elif callable(found):
        return Candidate(name, CodeGenAdapter, change=found, source=source)
    raise CandidateError(
        f"--bridge {name} is no bridge: give an attention bridge class, an ArchitectureAdapter subclass, or a function "
        "that takes a booted bridge and returns it."
    )


def _digest(found: object) -> str:
    """Of the source file in which something was defined."""
    try:
        file = inspect.getsourcefile(found)  # type: ignore[arg-type]
    except TypeError:  # built into Python
        file = None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


@restore_working_directory()
def _import(name: str) -> Any:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise CandidateError(f"--bridge {name}: give {', '.join(BUILT_IN)}, or module:name.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a file of the user's must not stand for a library's module
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # importing runs the user's code, which may raise anything
        raise CandidateError(f"--bridge {name} cannot be imported: {type(error).__name__}: {said(error)}") from error
    return found
