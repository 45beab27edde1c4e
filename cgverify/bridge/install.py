"""Make TransformerLens's own `boot_transformers` build CodeGen bridges with our attention."""

from __future__ import annotations

from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter

from cgverify.bridge.boot import ARCHITECTURE, CodeGenAdapter


def install() -> None:
    """From now on, every CodeGen bridge that this process boots has our attention. Calling it twice does no harm."""
    ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, CodeGenAdapter)


def uninstall() -> None:
    """Undo `install`: bridges booted from now on have TransformerLens's attention again."""
    ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, CodeGenArchitectureAdapter)
