"""Booting a bridge: from a folder, from memory, without a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CodeGenForCausalLM

from cgverify.bridge import CodeGenAttentionBridge, boot


def test_a_folder_and_a_model_in_memory_give_the_same_bridge(folder: Path, model: CodeGenForCausalLM) -> None:
    tokens = torch.randint(101, (1, 7))
    with torch.no_grad():
        from_folder, from_memory = boot(folder)(tokens), boot(model)(tokens)
    assert torch.equal(from_folder, from_memory)


def test_every_block_has_our_attention(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    assert [type(block.attn) for block in bridge.blocks] == [CodeGenAttentionBridge] * 2
    assert bridge.tokenizer is None


def test_dtype_and_device_are_those_asked_for(folder: Path) -> None:
    bridge = boot(folder, dtype=torch.float16, device="cpu")
    assert bridge.cfg.dtype == torch.float16
    assert next(bridge.parameters()).dtype == torch.float16
    assert bridge.blocks[0].attn.original_component.embed_positions.dtype == torch.float32


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="gpt2"):
        boot(tmp_path)
