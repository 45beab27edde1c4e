"""`--prompt` or `--tokens` -> the token ids of a checkpoint.

| checkpoint | a text's tokens |
|---|---|
| codegen-nano | its bytes |
| one with a tokenizer in the folder of its weights | the tokenizer's |
| random weights without one | its bytes, spread over the vocabulary, since no text has a meaning for them |
| trained weights without one | none: `--tokens` is required, since other tokens would not be text for the model |
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

from cgverify.checkpoint.disk import on_this_disk
from cgverify.checkpoint.names import NANO
from cgverify.checkpoint.source import RandomWeights, Source
from cgverify.common.errors import UsageError
from cgverify.common.printable import described
from cgverify.common.records import Prompt

DEFAULT = Path(__file__).with_name("prompt.txt")
"""A short piece of Python."""

UNSEEN = Prompt(tokens=(0,) * 64, origin="not known before the checkpoint is here")
"""The prompt in a plan for a checkpoint that is unavailable or not opened."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


def prompt_for(model: str, source: Source, text: str | None = None, tokens: Path | None = None) -> Prompt:
    """Return the prompt of a run.

    Args:
        model: as the user typed it. Its tokenizer is looked for only in the folder of its weights.
        text: None is the text of the package.
        tokens: a file of token ids, separated by white space, or a JSON list.

    Raises:
        UsageError: both are given, the file does not contain ids of this vocabulary, or there is no tokenizer.
    """
    if tokens is not None:
        if text is not None:
            raise UsageError("--prompt and --tokens cannot be combined: give one of them.")
        return _in_vocabulary(Prompt(tokens=_read(tokens), origin=f"tokens of {tokens}"), source)
    origin = "the package's own text" if text is None else repr(text)
    text = DEFAULT.read_text(encoding="utf-8") if text is None else text
    folder = Path(model) if Path(model).is_dir() else on_this_disk(model)
    in_bytes = text.encode()
    if folder == NANO:
        return Prompt(tokens=tuple(in_bytes), origin=f"{origin}, bytes as tokens")
    if folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES):
        given = _by_tokenizer(folder, text)
        return _in_vocabulary(Prompt(tokens=given, origin=f"{origin}, by the tokenizer in {folder}"), source)
    if isinstance(source, RandomWeights):
        size = source.config.vocab_size
        spread = max(1, size // 256)
        ids = tuple(byte * spread % size for byte in in_bytes)
        return Prompt(tokens=ids, origin=f"{origin}, bytes spread over the vocabulary")
    raise UsageError(
        f"{model} has no tokenizer in the folder of its weights, so a prompt has no tokens: give --tokens FILE with "
        "token ids, or put its tokenizer.json there."
    )


def _by_tokenizer(folder: Path, text: str) -> tuple[int, ...]:
    """Return the ids that the tokenizer in a folder gives a text."""
    try:
        return tuple(AutoTokenizer.from_pretrained(folder, local_files_only=True)(text)["input_ids"])
    except Exception as error:  # transformers raises errors of several libraries for damaged files
        raise UsageError(
            f"The tokenizer in {folder} cannot be used ({described(error)}): put its files there again, or give "
            "--tokens FILE with token ids."
        ) from error


def _read(path: Path) -> tuple[int, ...]:
    try:
        written = path.read_text(encoding="utf-8")
        ids = json.loads(written) if written.lstrip().startswith("[") else [int(word) for word in written.split()]
    except OSError as error:
        raise UsageError(f"Cannot read --tokens {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(
            f"--tokens {path} does not contain token ids: write whole numbers with white space between them, or a JSON "
            "list."
        ) from error
    if not all(type(token) is int for token in ids):
        raise UsageError(f"--tokens {path} contains more than whole numbers: write a flat list of token ids.")
    return tuple(ids)


def _in_vocabulary(prompt: Prompt, source: Source) -> Prompt:
    size = source.config.vocab_size
    for token in prompt.tokens:
        if not 0 <= token < size:
            raise UsageError(f"Token {token} ({prompt.origin}) is not in the vocabulary: ids go from 0 to {size - 1}.")
    return prompt
