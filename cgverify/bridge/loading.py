"""Load a CodeGen checkpoint and its tokenizer from a name, a folder or the hub; refuse what is not CodeGen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn
from transformers import AutoTokenizer, CodeGenConfig, CodeGenForCausalLM, PreTrainedTokenizerBase

from cgverify.bridge.codegen_format import NotCodeGenError, config_from, read_config, require_tensors

NANO = Path(__file__).parent.parent / "checkpoint" / "codegen-nano"
"""The trained checkpoint that is part of the package."""

_NAMED = re.compile(r"codegen-(350M|2B|6B|16B)(-mono|-multi|-nl)?")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
"""The files of which a tokenizer needs at least one."""


def locate(source: str | Path) -> tuple[str, str | None]:
    """Return the folder or hub id, and the revision or None, of a `--model` of the command line.

    `codegen-2B@main` is Salesforce's repository `codegen-2B-mono` at the revision `main`.
    """
    name, _, revision = str(source).partition("@")
    if name == "codegen-nano":
        return str(NANO), None
    if named := _NAMED.fullmatch(name):
        return f"Salesforce/codegen-{named[1]}{named[2] or '-mono'}", revision or None
    if Path(source).is_dir():
        return str(source), None
    return name, revision or None


def load_model(source: str, revision: str | None, dtype: torch.dtype) -> CodeGenForCausalLM:
    """Return the model of a folder or hub id, in eval mode on the CPU.

    Raises:
        NotCodeGenError: its config or the names of its tensors are not CodeGen's.
        OSError: transformers finds no checkpoint there.
    """
    if Path(source).is_dir():
        config = read_config(Path(source))
    else:
        config = config_from(CodeGenConfig.get_config_dict(source, revision=revision)[0], source)
    loaded: Any = CodeGenForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, output_loading_info=True)
    model, found = loaded
    stored = (model.state_dict().keys() - set(found["missing_keys"])) | set(found["unexpected_keys"])
    require_tensors(stored, config, source)
    return cast(CodeGenForCausalLM, model.eval())


def require_codegen(model: nn.Module) -> None:
    """Check that a model in memory is Hugging Face's.

    Raises:
        NotCodeGenError: it has another class, or was loaded from a checkpoint that brings its own code, as CodeGen2's.
    """
    if not isinstance(model, CodeGenForCausalLM):
        raise NotCodeGenError(
            f"This {type(model).__module__}.{type(model).__name__} is not transformers' CodeGenForCausalLM: if it "
            "wraps one, pass the model inside (model.module, model._orig_mod, or get_base_model() of an adapter)."
        )
    if getattr(model.config, "auto_map", None):
        raise NotCodeGenError(
            "This model is of a checkpoint that has its own code (auto_map), as CodeGen2 does, whose fused QKV weight "
            "has 8 partitions under CodeGen's name: its layout is not guessed."
        )


def load_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a folder or hub id; None if it has no file with a vocabulary.

    Without such a file, transformers would return a tokenizer of one token.

    Raises:
        ValueError: there is one, which cannot be loaded.
    """
    if not any(_has_file(source, name, revision) for name in _VOCABULARIES):
        return None
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, revision=revision))
    except Exception as error:  # transformers and tokenizers raise errors of many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"The tokenizer of {source} cannot be loaded: {reason:.300} Pass tokenizer=….") from error


def _has_file(source: str, name: str, revision: str | None) -> bool:
    if Path(source).is_dir():
        return (Path(source) / name).is_file()
    try:
        hf_hub_download(source, name, revision=revision)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return False
    return True
