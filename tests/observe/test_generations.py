"""Generations of Hugging Face's CodeGen: today's is recognised by its classes, an unknown one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import torch
from transformers import CodeGenForCausalLM
from transformers.models.codegen.modeling_codegen import CodeGenAttention

from cgverify.common.errors import CgverifyError
from cgverify.observe.candidate import find_candidate
from cgverify.observe.generations import installed
from cgverify.observe.generations.embed_positions import EMBED_POSITIONS
from cgverify.observe.run import reference_parameters


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CodeGen whose attention takes sines and cosines instead of positions."""

    def forward(self: Any, hidden_states: Any, attention_mask: Any, position_embeddings: Any) -> None:
        pass

    monkeypatch.setattr(CodeGenAttention, "forward", forward)
    monkeypatch.delattr(CodeGenAttention, "_attn")
    installed.cache_clear()
    yield
    installed.cache_clear()


def test_todays_classes_belong_to_a_known_generation(model: CodeGenForCausalLM) -> None:
    assert installed() is EMBED_POSITIONS
    assert torch.equal(installed().sin_cos_table(model), model.transformer.h[0].attn.embed_positions)


@pytest.mark.usefixtures("unknown")
def test_unknown_generation_is_one_sentence_and_exit_code_3(model: CodeGenForCausalLM) -> None:
    misfits = "CodeGenAttention has no _attn, its forward takes no position_ids, its forward takes no layer_past"
    for use in (lambda: find_candidate("cgverify"), lambda: reference_parameters(model)):
        with pytest.raises(CgverifyError) as raised:
            use()
        assert str(raised.value).startswith(f"transformers {version('transformers')} has a CodeGen")
        assert misfits in str(raised.value)
        assert raised.value.exit_code == 3
