"""Generations of Hugging Face's CodeGen: the installed one is recognised by its classes, an unknown one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from hugging_face import TABLE_PER_MODEL, table_owners
from transformers import CodeGenForCausalLM
from transformers.models.codegen import modeling_codegen
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgverify.common.errors import CgverifyError
from cgverify.observe.candidate import find_candidate
from cgverify.observe.generations import embed_positions, installed
from cgverify.observe.generations.embed_positions import EMBED_POSITIONS
from cgverify.observe.generations.generation import Generation
from cgverify.observe.generations.position_embeddings import POSITION_EMBEDDINGS
from cgverify.observe.run import reference_parameters


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CodeGen whose attention calls its arguments by other names."""

    class RenamedArguments(CodeGenAttention):  # type: ignore[misc]
        def forward(self, x: Any, mask: Any, rotary: Any, memory: Any) -> None:
            pass

    for module in (modeling_codegen, embed_positions):
        monkeypatch.setattr(module, "CodeGenAttention", RenamedArguments)
    installed.cache_clear()
    yield
    installed.cache_clear()


def test_installed_classes_belong_to_a_known_generation(model: CodeGenForCausalLM) -> None:
    assert installed() is (POSITION_EMBEDDINGS if TABLE_PER_MODEL else EMBED_POSITIONS)
    assert torch.equal(installed().sin_cos_table(model), table_owners(model)[0].embed_positions)


@pytest.mark.parametrize("generation", [EMBED_POSITIONS, POSITION_EMBEDDINGS])
def test_only_the_installed_generation_fits(generation: Generation) -> None:
    assert (generation.misfits() == []) is (generation is installed())


@pytest.mark.usefixtures("unknown")
def test_unknown_generation_is_one_sentence_and_exit_code_3(model: CodeGenForCausalLM) -> None:
    for use in (lambda: find_candidate("cgverify"), lambda: reference_parameters(model)):
        with pytest.raises(CgverifyError) as raised:
            use()
        assert str(raised.value).startswith(f"transformers {version('transformers')} has a CodeGen")
        assert "takes no position_ids" in str(raised.value)
        assert "takes no position_embeddings" in str(raised.value)
        assert raised.value.exit_code == 3
