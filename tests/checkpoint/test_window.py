"""The window of one block shows the weights that `from_pretrained` would load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hugging_face import table_owners
from safetensors.torch import load_file, save_file
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import RandomWeights
from cgverify.checkpoint.window import ModelVariant, Window, refusal
from cgverify.common.errors import WeightsError

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_in_the_window_equals_that_of_from_pretrained(folder: Path, dtype: torch.dtype) -> None:
    whole = CodeGenForCausalLM.from_pretrained(folder, dtype=dtype)
    window = Window(resolve(str(folder)))
    window.show(1)
    one_block = window.model(ModelVariant(dtype, CPU, 8))
    block = one_block.transformer.h[0]
    expected = whole.transformer.h[1]
    for (name, ours), theirs in zip(block.named_parameters(), expected.parameters(), strict=True):
        assert ours.dtype == theirs.dtype == dtype, name
        assert torch.equal(ours, theirs), name
    (table, *_), (expected_table, *_) = (
        [owner.embed_positions for owner in table_owners(model)] for model in (one_block, whole)
    )
    assert table.dtype == expected_table.dtype
    assert torch.equal(table, expected_table)
    assert block.attn.layer_idx == 1
    assert not block.training


@pytest.mark.parametrize("view", ["embed", "ln_final", "unembed"])
def test_ends_in_the_window_equal_those_of_from_pretrained(folder: Path, view: str) -> None:
    whole = CodeGenForCausalLM.from_pretrained(folder, dtype=torch.float32)
    window = Window(resolve(str(folder)))
    window.show(view)
    model = window.model(ModelVariant(torch.float32, CPU, 8))
    paths = {"embed": "transformer.wte", "ln_final": "transformer.ln_f", "unembed": "lm_head"}
    for ours, theirs in zip(
        model.get_submodule(paths[view]).parameters(), whole.get_submodule(paths[view]).parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_only_weights_in_view_take_memory(folder: Path) -> None:
    window = Window(resolve(str(folder)))
    window.show(0)
    model = window.model(ModelVariant(torch.float32, CPU, 8))
    elsewhere = [name for name, p in model.named_parameters() if not name.startswith("transformer.h.0.")]
    assert elsewhere
    assert all(model.get_parameter(name).is_meta for name in elsewhere)
    assert not any(p.is_meta for p in model.transformer.h[0].parameters())


def test_models_of_one_view_share_no_memory(folder: Path) -> None:
    window = Window(resolve(str(folder)))
    window.show(0)
    first, second = (window.model(ModelVariant(torch.float32, CPU, 8)) for _ in range(2))
    first.transformer.h[0].attn.out_proj.weight.data.zero_()
    assert second.transformer.h[0].attn.out_proj.weight.abs().sum() > 0
    third = window.model(ModelVariant(torch.float32, CPU, 8))
    assert torch.equal(third.transformer.h[0].attn.out_proj.weight, second.transformer.h[0].attn.out_proj.weight)


def test_weights_are_aligned_to_64_bytes(folder: Path) -> None:
    window = Window(resolve(str(folder)))
    window.show(0)
    for parameter in window.model(ModelVariant(torch.float32, CPU, 8)).transformer.h[0].parameters():
        assert parameter.data_ptr() % 64 == 0


@pytest.mark.parametrize("rotary_dim", [2, 16, "none"])
def test_rotary_dim_of_the_variant_is_used(folder: Path, rotary_dim: int | str) -> None:
    window = Window(resolve(str(folder)))
    window.show(0)
    model = window.model(ModelVariant(torch.float32, CPU, rotary_dim))  # type: ignore[arg-type]
    attention = model.transformer.h[0].attn
    assert attention.rotary_dim == (None if rotary_dim == "none" else rotary_dim)
    assert table_owners(model)[0].embed_positions.shape == (64, 16 if rotary_dim == "none" else rotary_dim)


@pytest.mark.parametrize(("rotary_dim", "refused"), [(0, True), (2, False), (7, True), (16, False), (18, True)])
def test_rotary_dim_that_hugging_face_refuses_is_refused(config: CodeGenConfig, rotary_dim: int, refused: bool) -> None:
    reason = refusal(config, rotary_dim)
    assert (reason is not None) == refused
    assert reason is None or f"rotary_dim {rotary_dim}" in reason


def test_spread_gives_scores_a_deviation_of_three(folder: Path) -> None:
    window = Window(resolve(str(folder)))
    window.show(0)
    attention = window.model(ModelVariant(torch.float32, CPU, 8)).transformer.h[0].attn
    torch.manual_seed(1)
    hidden = torch.randn(1, 512, 64) * window.spread()
    query, _, key = (
        part.reshape(512, 4, 16) for part in attention.qkv_proj(hidden)[0].reshape(512, 4, 3, 16).unbind(2)
    )
    scores = torch.einsum("qhd,khd->hqk", query, key) / 4
    assert 2.5 < scores.std() < 3.5


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_damaged_weights_are_reported(folder: Path, damage: float) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.1.mlp.fc_in.weight"][3, 4] = damage
    save_file(tensors, path, metadata={"format": "pt"})
    window = Window(resolve(str(folder)))
    window.show(0)
    with pytest.raises(WeightsError, match=r"h\.1\.mlp\.fc_in\.weight has 1 NaN"):
        window.show(1)


def test_random_weights_depend_on_seed_and_name_alone(config: CodeGenConfig) -> None:
    shape = torch.Size([5, 7])
    source = RandomWeights(config, seed=3)
    first = source.read("transformer.h.0.mlp.fc_in.weight", shape)
    source.read("transformer.h.1.mlp.fc_in.weight", shape)
    assert torch.equal(RandomWeights(config, seed=3).read("transformer.h.0.mlp.fc_in.weight", shape), first)
    assert not torch.equal(RandomWeights(config, seed=4).read("transformer.h.0.mlp.fc_in.weight", shape), first)
    gain = source.read("transformer.h.0.ln_1.weight", torch.Size([1000]))
    assert 0.9 < gain.mean() < 1.1
    assert gain.std() > 0.05
    assert RandomWeights(config, 3).digest != RandomWeights(config, 4).digest


def test_random_weights_do_not_depend_on_the_threads(config: CodeGenConfig) -> None:
    found = []
    for number in (1, 4):
        torch.set_num_threads(number)
        window = Window(RandomWeights(config, 0))
        window.show(1)
        found.append(window.model(ModelVariant(torch.float32, CPU, 8)).transformer.h[0].state_dict())
    assert list(found[0]) == list(found[1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
