"""Tokenizers are used as they are given, and several texts give what each gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sides import small_config, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, CodeGenForCausalLM, PreTrainedTokenizerFast

from cgverify.bridge import boot, save_pretrained

TEXTS = ["def f(x):", "class Stack(object): pass", "!a!"]


def exclaiming() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes in memory, without a padding token. Its start and end token occurs in texts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="!", eos_token="!", unk_token="!")


@pytest.fixture(scope="module")
def bridge() -> Any:
    torch.manual_seed(0)
    model = CodeGenForCausalLM(small_config(vocab_size=300, initializer_range=0.2)).eval()
    return boot(model, tokenizer=exclaiming())


@torch.no_grad()
def test_folder_without_a_vocabulary_has_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    bridge = boot(folder)
    assert bridge.tokenizer is None
    assert bridge(torch.tensor([[1, 2]])).shape == (1, 2, 101)
    for use in (bridge, bridge.to_tokens, bridge.generate, bridge.run_with_cache, bridge.hf_generate):
        with pytest.raises((ValueError, AssertionError), match=r"[Tt]okenizer"):
            use("def f(x):")
    with pytest.raises(ValueError, match=r"has no tokenizer: pass token ids"):
        bridge(["def", "class"], return_type="loss")
    bridge.tokenizer = tokenizer()
    assert bridge.to_tokens("a").shape == (1, 2)


def test_damaged_tokenizer_raises_a_sentence(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded"):
        boot(folder)


def test_saved_bridge_has_its_tokenizer(bridge: Any, folder: Path, tmp_path: Path) -> None:
    bridge.tokenizer.add_tokens(["<fim>"])
    save_pretrained(bridge, tmp_path / "saved")
    again = boot(tmp_path / "saved")
    assert torch.equal(again.to_tokens("<fim>x!"), bridge.to_tokens("<fim>x!"))
    save_pretrained(boot(folder), tmp_path / "without")
    assert boot(tmp_path / "without").tokenizer is None


def test_given_tokenizer_is_used_as_it_is(folder: Path) -> None:
    exclaiming().save_pretrained(folder)
    given = AutoTokenizer.from_pretrained(folder)
    given.add_special_tokens({"pad_token": "<pad>"})
    given.add_tokens(["<fim>"])
    given.padding_side = "left"
    bridge = boot(folder, tokenizer=given)
    assert bridge.tokenizer is given
    assert (len(given), given.pad_token, given.padding_side) == (258, "<pad>", "left")
    assert bridge.to_tokens("<fim>x", prepend_bos=False)[0].tolist() == given("<fim>x")["input_ids"]
    assert bridge.to_tokens(["a", "bc"])[0, 0] == given.pad_token_id


def test_tokenizer_in_memory_is_completed_in_a_copy(model: CodeGenForCausalLM) -> None:
    given = exclaiming()
    bridge = boot(model, tokenizer=given)
    assert given.pad_token is None
    assert bridge.tokenizer.pad_token == "!"
    assert len(bridge.tokenizer) == 256
    assert bridge.to_tokens("a").tolist() == [[given.bos_token_id, given.convert_tokens_to_ids("a")]]
    bare = PreTrainedTokenizerFast(tokenizer_object=given.backend_tokenizer)
    with pytest.raises(ValueError, match="set its pad_token"):
        bridge.tokenizer = bare


@torch.no_grad()
def test_nano_takes_text_whose_tokens_are_its_bytes() -> None:
    bridge = boot("codegen-nano")
    text = "def größe(x):\n\treturn '☃\0' # Ā ~\x7f\xa0\xad"
    assert bridge.to_tokens(text)[0].tolist() == [0, *text.encode()]
    assert bridge.to_string(bridge.to_tokens(text, prepend_bos=False)[0]) == text
    assert bridge.to_tokens(bytes(range(128)).decode(), prepend_bos=False)[0].tolist() == list(range(128))
    written = bridge.generate("def add(a, b):\n    return a", max_new_tokens=4, do_sample=False, verbose=False)
    assert written.startswith("def add(a, b):\n    return a")
    assert len(written) == 31


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prepend_bos", [True, False])
@torch.no_grad()
def test_texts_have_the_logits_and_loss_of_each_alone(bridge: Any, side: str, prepend_bos: bool) -> None:
    together = bridge(TEXTS, prepend_bos=prepend_bos, padding_side=side)
    losses, lengths = [], []
    for row, text in zip(together, TEXTS, strict=True):
        alone = bridge(text, prepend_bos=prepend_bos)[0]
        shown = row[-len(alone) :] if side == "left" else row[: len(alone)]
        torch.testing.assert_close(shown, alone)
        losses.append(float(bridge(text, prepend_bos=prepend_bos, return_type="loss")) * (len(alone) - 1))
        lengths.append(len(alone) - 1)
    found = bridge(TEXTS, prepend_bos=prepend_bos, padding_side=side, return_type="loss")
    assert float(found) == pytest.approx(sum(losses) / sum(lengths), rel=1e-5)
    _, cache = bridge.run_with_cache(TEXTS, prepend_bos=prepend_bos, padding_side=side)
    assert len(cache["ln_final.hook_out"]) == len(TEXTS)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_texts_are_continued_as_each_alone(bridge: Any, prepend_bos: bool) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    options["prepend_bos"] = prepend_bos
    together = bridge.generate(TEXTS, **options, return_type="tokens")
    streamed = torch.cat(list(bridge.generate_stream(TEXTS, **options, return_type="tokens")), dim=1)
    assert torch.equal(streamed, together)
    alone = [bridge.generate(text, **options, return_type="tokens")[0] for text in TEXTS]
    for row, expected in zip(together, alone, strict=True):
        assert row[-len(expected) :].tolist() == expected.tolist()
    strings = bridge.generate(TEXTS, **options)
    assert strings == [bridge.generate(text, **options) for text in TEXTS]
    assert bridge.generate(TEXTS, 6, False, do_sample=False, verbose=False, prepend_bos=prepend_bos) == strings


def test_unknown_keyword_of_generate_raises(bridge: Any) -> None:
    with pytest.raises(TypeError, match="'max_tokens'"):
        bridge.generate("a", max_tokens=3)
