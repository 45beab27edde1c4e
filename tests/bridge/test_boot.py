"""Booting a bridge from a folder or from memory, without a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hugging_face import eager, table_owners
from transformers import CodeGenForCausalLM

from cgverify.bridge import CodeGenAttentionBridge, boot


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_bridge_of_a_folder_has_hugging_faces_logits(folder: Path, dtype: torch.dtype) -> None:
    tokens = torch.randint(101, (2, 9))
    expected = eager(CodeGenForCausalLM.from_pretrained(folder, dtype=dtype)).eval()(tokens).logits
    bridge = boot(folder, dtype=dtype, device="cpu")
    assert torch.equal(bridge(tokens), expected)
    assert bridge.cfg.dtype == dtype
    assert table_owners(bridge.original_model)[0].embed_positions.dtype == torch.float32


def test_bridge_of_a_model_has_our_attention_in_every_block(model: CodeGenForCausalLM) -> None:
    tokens = torch.randint(101, (1, 7))
    with torch.no_grad():
        expected = eager(model)(tokens).logits
        bridge = boot(model)
        assert torch.equal(bridge(tokens), expected)
    assert [type(block.attn) for block in bridge.blocks] == [CodeGenAttentionBridge] * 2
    assert bridge.tokenizer is None


def test_another_architecture_raises(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="gpt2"):
        boot(tmp_path)
