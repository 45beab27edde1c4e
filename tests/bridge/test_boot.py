"""Booting a bridge from a name, a folder or from memory, and what is refused."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import serving
from hugging_face import eager, table_owners
from safetensors.torch import load_file, save_file
from transformer_lens.hook_points import HookPoint
from transformers import CodeGenForCausalLM

from cgverify.bridge import CodeGenAttentionBridge, boot
from cgverify.bridge.codegen_bridge import CodeGenBridge
from cgverify.bridge.codegen_format import NotCodeGenError
from cgverify.bridge.loading import locate
from cgverify.checkpoint.names import HUB_IDS, NAMED, NANO
from cgverify.checkpoint.resolve import resolve
from cgverify.common.errors import CgverifyError


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


def test_hooks_have_transformer_lens_names(model: CodeGenForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[tuple[str, str | None]]:
        bridge = boot(copy.deepcopy(model))
        booted = [(name, hook.name) for name, hook in bridge._hook_registry.items()]
        bridge.blocks.probe = HookPoint()  # on a module that keeps no list of its hooks
        bridge.clear_hook_registry()
        bridge._initialize_hook_registry()
        return booted + [(name, hook.name) for name, hook in bridge._hook_registry.items()]

    ours = names()
    monkeypatch.delattr(CodeGenBridge, "_scan_existing_hooks")
    assert ours == names()
    assert {("blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"), ("blocks.probe",) * 2} <= set(ours)


@pytest.mark.parametrize("name", NAMED)
def test_name_is_located_where_the_verifier_looks(name: str) -> None:
    if name == "codegen-nano":
        assert locate(name) == (str(NANO), None)
    else:
        assert locate(name) == (HUB_IDS[name], None)
        assert locate(f"{name}@abc") == (HUB_IDS[name], "abc")


@torch.no_grad()
def test_nano_is_booted_by_name() -> None:
    tokens = torch.tensor([list(b"def f(x):")])
    expected = eager(CodeGenForCausalLM.from_pretrained(NANO, dtype=torch.float32)).eval()(tokens).logits
    assert torch.equal(boot("codegen-nano")(tokens), expected)


def test_hub_id_without_a_vocabulary_has_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}")
    code = "from cgverify.bridge import boot; b = boot('some/tiny@v2'); print(b.tokenizer, b.cfg.d_model)"
    command = [sys.executable, "-c", code]
    with serving(folder, "some/tiny") as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["None", "64"]


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def renamed(folder: Path, rename: Callable[[str], str]) -> Path:
    path = folder / "model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    return folder


REFUSED = {
    "code of its own": lambda folder: changed(folder, auto_map={"AutoModelForCausalLM": "modeling_codegen.CodeGen"}),
    "another architecture": lambda folder: changed(folder, model_type="gpt2"),
    "an adapter": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "the prefix of torch.compile": lambda folder: renamed(folder, lambda name: f"_orig_mod.{name}"),
    "the prefix of DDP": lambda folder: renamed(folder, lambda name: f"module.{name}"),
    "the names of an adapter": lambda folder: renamed(
        folder, lambda name: name.replace("qkv_proj", "qkv_proj.base_layer")
    ),
    "no unembedding": lambda folder: renamed(folder, lambda name: name.replace("lm_head", "other")),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folder_that_is_not_codegens_is_refused(folder: Path, kind: str) -> None:
    REFUSED[kind](folder)
    with pytest.raises(CgverifyError) as verifier:
        resolve(str(folder))
    with pytest.raises(NotCodeGenError) as refusal:
        boot(folder)
    assert str(refusal.value) == str(verifier.value)


class Wrapper(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.config = module.config


def test_model_in_memory_that_is_not_codegens_is_refused(model: CodeGenForCausalLM) -> None:
    for wrapped in (Wrapper(model), torch.compile(model)):
        with pytest.raises(NotCodeGenError, match="pass the model inside"):
            boot(wrapped)
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}
    with pytest.raises(NotCodeGenError, match="8 partitions"):
        boot(model)
