"""Make TransformerLens's own `boot_transformers` build CodeGen bridges with our attention."""

from __future__ import annotations

from typing import Any

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

from cgverify.bridge.boot import ARCHITECTURE, CodeGenAdapter

_before: type[Any] | None = None
"""The adapter in whose place ours stands."""


def install() -> None:
    """From now on, every CodeGen bridge that this process boots has our attention. Calling it twice does no harm."""
    global _before
    if _registered() is not CodeGenAdapter:
        _before = _registered()
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, CodeGenAdapter)


def uninstall() -> None:
    """Undo `install`: bridges booted from now on are TransformerLens's again, or whose adapter was registered before.

    An adapter that somebody registered since then stays.
    """
    if _before is not None and _registered() is CodeGenAdapter:
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, _before)


def _registered() -> type[Any]:
    adapter: type[Any] = ArchitectureAdapterFactory._adapters[ARCHITECTURE]
    return adapter
