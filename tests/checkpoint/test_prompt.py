"""Text and files -> token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cgverify.checkpoint.prompt import DEFAULT, prompt_for
from cgverify.checkpoint.resolve import resolve
from cgverify.common.errors import UsageError


def test_tokens_of_nano_are_bytes() -> None:
    source = resolve("codegen-nano")
    assert prompt_for("codegen-nano", source, "x = ü").tokens == tuple("x = ü".encode())
    own = prompt_for("codegen-nano", source)
    assert bytes(own.tokens) == DEFAULT.read_bytes()
    assert own.origin == "the package's own text, bytes as tokens"


def test_tokens_of_random_weights_are_spread_bytes() -> None:
    tokens = prompt_for("codegen-350M", resolve("codegen-350M", "random"), "\x00 \x7f").tokens
    assert tokens == (0, 32 * 200, 127 * 200)


def test_tokenizer_in_the_folder_of_the_weights_is_used(folder: Path) -> None:
    words = Tokenizer(models.WordLevel({"def": 7, "f": 100, "?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    prompt = prompt_for(str(folder), resolve(str(folder)), "def f f g")
    assert prompt.tokens == (7, 100, 100, 0)
    assert str(folder) in prompt.origin


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[1]"),
        ("vocab.json", "x"),
        ("tokenizer.json", '{"model": 1}'),
    ],
)
def test_damaged_tokenizer_is_reported(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UsageError, match=r"The tokenizer in .* cannot be used \(.*give --tokens FILE"):
        prompt_for(str(folder), resolve(str(folder)), "def f")


def test_trained_weights_without_a_tokenizer_require_tokens(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"has no tokenizer in the folder of its weights.*give --tokens FILE"):
        prompt_for(str(folder), resolve(str(folder)))


@pytest.mark.parametrize("written", ["5 6\n7", "[5, 6, 7]", " \n[5,6,\n7]\n"])
def test_token_file_is_read_in_either_form(folder: Path, tmp_path: Path, written: str) -> None:
    (tmp_path / "ids").write_text(written)
    assert prompt_for(str(folder), resolve(str(folder)), tokens=tmp_path / "ids").tokens == (5, 6, 7)


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("5 six", "does not contain token ids: write whole numbers"),
        ("[5, 6", "does not contain token ids"),
        ("[[5], 6]", "write a flat list"),
        ("[5, true]", "write a flat list"),
        ("5 101", "Token 101 .* is not in the vocabulary: ids go from 0 to 100"),
        ("5 -1", "Token -1"),
    ],
)
def test_file_without_tokens_is_refused(folder: Path, tmp_path: Path, written: str, sentence: str) -> None:
    (tmp_path / "ids").write_text(written)
    with pytest.raises(UsageError, match=sentence):
        prompt_for(str(folder), resolve(str(folder)), tokens=tmp_path / "ids")


def test_missing_file_and_second_prompt_are_refused(tmp_path: Path) -> None:
    source = resolve("codegen-nano")
    with pytest.raises(UsageError, match="Cannot read --tokens"):
        prompt_for("codegen-nano", source, tokens=tmp_path / "none")
    with pytest.raises(UsageError, match="give one of them"):
        prompt_for("codegen-nano", source, "x", tmp_path / "none")
