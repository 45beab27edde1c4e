"""What the user typed -> a source of tensors, and each way in which this can fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CodeGenForCausalLM

from cgverify.bridge.codegen_format import skeleton
from cgverify.checkpoint.lookup import describe_checkpoint
from cgverify.checkpoint.names import NAMED, block_parameters
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import FolderWeights, RandomWeights
from cgverify.common.errors import CgverifyError, CheckpointMissingError, UnknownNameError, WeightsError

NAME = "transformer.h.0.attn.out_proj.weight"


def test_named_checkpoint_without_weights_here_is_random() -> None:
    source = resolve("codegen-350M")
    assert isinstance(source, RandomWeights)
    assert source.origin == "random (seed 0)"
    assert (source.config.n_embd, source.config.n_layer, source.config.rotary_dim) == (1024, 20, 32)


def test_shipped_checkpoint_is_trained_and_small(nano: Path) -> None:
    source = resolve("codegen-nano")
    assert isinstance(source, FolderWeights)
    assert (nano / "model.safetensors").stat().st_size < 6_000_000
    assert source.config.vocab_size == 256
    assert source.config.n_layer >= 4
    shape = NAMED["codegen-nano"]
    assert (source.config.n_embd, source.config.n_layer, source.config.n_head, source.config.rotary_dim) == (
        shape.n_embd,
        shape.n_layers,
        shape.n_head,
        shape.rotary_dim,
    )


def test_shipped_checkpoint_has_learned_python(nano: Path) -> None:
    """A uniform guess costs 5.5 nats a byte. Byte frequencies alone would give far more than half of that."""
    model = CodeGenForCausalLM.from_pretrained(nano, dtype=torch.float32).eval()
    text = b"def main(self, name):\n    if name is None:\n        raise ValueError(name)\n    return self.name\n"
    tokens = torch.tensor([list(text)])
    assert model(tokens, labels=tokens).loss < 2.0


def test_one_file_and_shards_give_the_same_weights(folder: Path, model: CodeGenForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    shape = torch.Size([64, 64])
    tensors = [resolve(str(path)).read(NAME, shape) for path in (folder, tmp_path / "sharded")]
    assert torch.equal(*tensors)


def test_random_weights_of_a_folder_have_its_shape(folder: Path) -> None:
    source = resolve(str(folder), "random:7")
    assert source.origin == "random (seed 7)"
    assert source.config.n_embd == 64


@pytest.mark.parametrize("n_inner", [None, 24])
def test_described_block_has_the_size_of_its_model(folder: Path, n_inner: int | None) -> None:
    """The memory of a run is estimated from it, and a run that does not fit does not start."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "n_inner": n_inner}))
    source = resolve(str(folder), "random")
    (block,) = skeleton(source.config, 1).transformer.h
    described = describe_checkpoint(str(folder), "random", source)
    assert block_parameters(described) == sum(weight.numel() for weight in block.parameters())


def test_digest_depends_on_the_content(folder: Path) -> None:
    before = resolve(str(folder)).digest
    assert resolve(str(folder)).digest == before
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[NAME][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert resolve(str(folder)).digest != before


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def only_an_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), CheckpointMissingError, "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), CheckpointMissingError, "not JSON"),
        (change_config(model_type="gpt2"), CheckpointMissingError, "gpt2"),
        (change_config(n_head=2), CheckpointMissingError, "multiple of 4"),
        (change_config(n_layer=0), CheckpointMissingError, "n_layer 0"),
        (change_config(rotary_dim=None), CheckpointMissingError, "not a CodeGen config"),
        (lambda folder: (folder / "config.json").write_text("[1]"), CheckpointMissingError, "not a JSON object"),
        (only_an_index, WeightsError, "not an index"),
        (change_config(activation_function="relu"), CheckpointMissingError, "gelu_new"),
        (change_config(auto_map={"AutoModel": "x"}), CheckpointMissingError, "CodeGen2"),
        (lambda folder: (folder / "model.safetensors").unlink(), WeightsError, "no weights"),
        (truncate, WeightsError, "Fetch the file again"),
    ],
)
def test_damaged_folder_is_reported(
    folder: Path, damage: Callable[[Path], None], error: type[CgverifyError], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        resolve(str(folder))


def test_missing_shard_is_reported(model: CodeGenForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=lost.name):
        resolve(str(tmp_path))


def test_tensor_of_the_wrong_shape_and_missing_one_are_reported(folder: Path) -> None:
    source = resolve(str(folder))
    with pytest.raises(WeightsError, match=r"shape \[64, 64\] and config.json says \[64, 65\]"):
        source.read(NAME, torch.Size([64, 65]))
    with pytest.raises(WeightsError, match="has no tensor"):
        source.read("transformer.h.9.ln_1.weight", torch.Size([64]))


def test_integer_weights_are_reported(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[NAME] = tensors[NAME].to(torch.int32)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"stored as torch\.int32"):
        resolve(str(folder)).read(NAME, torch.Size([64, 64]))


@pytest.mark.parametrize(
    ("model", "weights", "error", "message"),
    [
        ("codegen-350", "auto", UnknownNameError, "codegen-350M"),
        ("./nowhere", "auto", CheckpointMissingError, "no folder"),
        ("owner/something", "auto", CheckpointMissingError, "hub id"),
        ("codegen-nano", "pretraned", UnknownNameError, "pretrained"),
        ("codegen-nano", "random:x", UnknownNameError, "random"),
        ("Salesforce/codegen-350M-mono", "pretrained", WeightsError, "is not in the hub cache"),
        ("codegen-350M", "pretrained", WeightsError, "Salesforce/codegen-350M-mono is not in the hub cache"),
    ],
)
def test_unknown_name_is_reported(model: str, weights: str, error: type[CgverifyError], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(model, weights)


def test_hub_checkpoint_in_the_cache_is_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache has folders models--OWNER--NAME/snapshots/REVISION, and refs that name the revision."""
    repository = tmp_path / "hub" / "models--Salesforce--codegen-350M-mono"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    for name in ("codegen-350M", "Salesforce/codegen-350M-mono"):
        source = resolve(name)
        assert isinstance(source, FolderWeights)
        assert source.config.n_embd == 64
    assert isinstance(resolve("codegen-350M", "random"), RandomWeights)
