"""Weights: the split of the fused weight, edits of it, loading, sharing, and the export to Hugging Face."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import eager
from sides import both, small_config
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot, hugging_face_weights, save_pretrained
from cgverify.bridge.joint_projection import project_jointly


@pytest.fixture
def lively() -> CodeGenForCausalLM:
    """A small model with biases other than 0 and gains other than 1, so that folding them has an effect."""
    torch.manual_seed(3)
    model = CodeGenForCausalLM(small_config(initializer_range=0.1)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("replace", [False, True])
@torch.no_grad()
def test_edit_of_the_fused_weight_warns_until_refresh(model: CodeGenForCausalLM, replace: bool) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = ours(**given)[0]
    fused = ours.original_component.qkv_proj
    if replace:
        fused.weight = torch.nn.Parameter(fused.weight * 2)
    else:
        fused.weight.mul_(2)
    with pytest.warns(UserWarning, match="refresh"):
        assert torch.equal(ours(**given)[0], before)
    ours.refresh()
    theirs.qkv_proj.weight.mul_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ours(**given)[0], theirs(**given)[0])


def warns(attention: Any) -> bool:
    """Return whether a forward warns that the fused weight was edited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attention(**attention.get_random_inputs(1, 1))
    return any("refresh" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("edits", [0, 1, 2])
@torch.no_grad()
def test_copy_warns_of_edits_before_and_after_copying(model: CodeGenForCausalLM, edits: int) -> None:
    for block in model.transformer.h:
        block.attn.qkv_proj.weight.mul_(1)  # before the boot, so that the count does not start at 0
    ours = boot(model).blocks[1].attn
    for _ in range(edits):
        ours.original_component.qkv_proj.weight.mul_(2)
    copied = copy.deepcopy(ours)
    assert warns(copied) == warns(ours) == (edits > 0)
    copied.refresh()
    assert not warns(copied)
    copied.original_component.qkv_proj.weight.mul_(2)
    assert warns(copied)
    assert warns(ours) == (edits > 0)


@torch.no_grad()
def test_load_without_qkv_neither_hides_an_edit_nor_is_one(lively: CodeGenForCausalLM) -> None:
    bridge = boot(copy.deepcopy(lively))
    attention = bridge.blocks[1].attn
    whole = bridge.state_dict()
    norms = {name: tensor for name, tensor in whole.items() if ".ln1." in name}
    bridge.load_state_dict(norms, strict=False)
    assert not warns(attention)
    attention.original_component.qkv_proj.weight.mul_(2)
    bridge.load_state_dict(norms, strict=False)
    assert warns(attention)
    bridge.load_state_dict(whole)
    assert not warns(attention)
    fused = {"_original_component.qkv_proj._original_component.weight": torch.zeros(192, 64)}
    attention.load_state_dict(fused, strict=False)
    assert warns(attention)


@torch.no_grad()
def test_edit_through_data_has_no_warning_but_refresh_works(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    given = ours.get_random_inputs()
    before = ours(**given)[0]
    ours.original_component.qkv_proj.weight.data.mul_(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ours(**given)[0], before)
    ours.refresh()
    assert not torch.allclose(ours(**given)[0], before)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_bridge_without_fused_weights_has_no_more_parameters(lively: CodeGenForCausalLM, tokens: torch.Tensor) -> None:
    expected, count = eager(lively)(tokens).logits, parameters(lively)
    assert parameters(boot(copy.deepcopy(lively))) == count + 2 * 3 * 64 * 64
    bridge = boot(lively, keep_fused=False)
    assert parameters(bridge) == count
    assert torch.equal(bridge(tokens), expected)
    with pytest.raises(ValueError, match="keep_fused=False"):
        bridge.blocks[0].attn.refresh()


@pytest.mark.parametrize("keep_fused", [True, False])
@torch.no_grad()
def test_state_dict_round_trips(lively: CodeGenForCausalLM, tokens: torch.Tensor, keep_fused: bool) -> None:
    source = boot(copy.deepcopy(lively), keep_fused=keep_fused)
    source.blocks[1].attn.q.original_component.weight.mul_(1.5)  # the state has Q, K and V as they are now
    target = boot(CodeGenForCausalLM(lively.config).eval(), keep_fused=keep_fused)
    assert not torch.allclose(target(tokens), source(tokens))
    target.load_state_dict(source.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target(tokens)
    assert torch.equal(target(tokens), source(tokens))


@pytest.mark.parametrize("keep_fused", [True, False])
@torch.no_grad()
def test_export_loads_to_the_same_logits(
    lively: CodeGenForCausalLM, tokens: torch.Tensor, tmp_path: Path, keep_fused: bool
) -> None:
    bridge = boot(copy.deepcopy(lively), keep_fused=keep_fused)
    bridge.blocks[0].attn.v.original_component.weight.mul_(1.5)
    bridge.original_model.generation_config.max_new_tokens = 7
    save_pretrained(bridge, tmp_path)
    again = eager(CodeGenForCausalLM.from_pretrained(tmp_path)).eval()
    assert torch.equal(again(tokens).logits, bridge(tokens))
    assert again.generation_config.max_new_tokens == 7
    assert again.config.to_diff_dict().keys() <= {*lively.config.to_diff_dict(), "dtype", "transformers_version"}


def test_unedited_weights_are_exported_bit_for_bit(lively: CodeGenForCausalLM) -> None:
    expected = {name: tensor.clone() for name, tensor in lively.state_dict().items()}
    found = hugging_face_weights(boot(lively).state_dict())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("keep_fused", [True, False])
@torch.no_grad()
def test_compatibility_mode_keeps_log_probabilities(
    lively: CodeGenForCausalLM, tokens: torch.Tensor, keep_fused: bool
) -> None:
    """With TransformerLens's defaults: layer norms folded in, weights centred, value biases folded."""
    expected = lively(tokens).logits.log_softmax(-1)
    bridge = boot(lively, keep_fused=keep_fused)
    plain = bridge(tokens)
    bridge.enable_compatibility_mode()
    processed = bridge(tokens)
    torch.testing.assert_close(processed.log_softmax(-1), expected, rtol=0, atol=2e-5)
    assert not torch.allclose(processed, plain)  # something was processed
    with pytest.raises(ValueError, match="enable_compatibility_mode"):
        hugging_face_weights(bridge.state_dict())
    with pytest.raises(ValueError, match="enable_compatibility_mode"):
        bridge.blocks[0].attn.refresh()
    assert torch.equal(bridge(tokens), processed)


@torch.no_grad()
def test_refresh_works_in_compatibility_mode_unprocessed(lively: CodeGenForCausalLM, tokens: torch.Tensor) -> None:
    bridge = boot(lively)
    bridge.enable_compatibility_mode(no_processing=True)
    before = bridge(tokens)
    attention = bridge.blocks[0].attn
    attention.original_component.qkv_proj.weight.mul_(2)
    attention.refresh()
    assert not torch.allclose(bridge(tokens), before)


@torch.no_grad()
def test_compatibility_mode_has_no_nan_in_a_fully_masked_row(lively: CodeGenForCausalLM) -> None:
    bridge = boot(lively)
    bridge.enable_compatibility_mode()
    attention = bridge.blocks[0].attn
    given = attention.get_random_inputs(1, 4)
    given["attention_mask"][..., 1, :] = torch.finfo(torch.float32).min
    output, pattern = attention(**given)
    assert output.isfinite().all()
    assert (pattern[:, :, 1] == 0).all()


@torch.no_grad()
def test_move_to_another_dtype_or_device_is_not_an_edit(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    for target in (torch.bfloat16, "meta"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours.to(target)
            ours._fused.warn_if_changed()
    _, edited = both(model)
    edited.original_component.qkv_proj.weight.mul_(2)
    with pytest.warns(UserWarning, match="refresh"):
        edited.to(torch.float64)(**edited.get_random_inputs(dtype=torch.float64))


@torch.no_grad()
def test_adjacent_weights_are_used_in_one_product(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    projections = (ours.q, ours.k, ours.v)
    assert project_jointly(projections, torch.randn(1, 2, 64)) is None  # three products are as fast
    for dtype, rows in ((torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 40), (torch.float16, 40)):
        ours.to(dtype)
        given = torch.randn(1, rows, 64).to(dtype)
        found = project_jointly(projections, given)
        assert found is not None
        for projection, part in zip(projections, found, strict=True):
            assert torch.equal(part, projection(given))


@pytest.mark.parametrize("separate", [False, True])
@torch.no_grad()
def test_shared_weights_stay_shared(model: CodeGenForCausalLM, separate: bool) -> None:
    _, ours = both(model)
    if separate:
        ours.k.original_component.weight = torch.nn.Parameter(ours.k.original_component.weight.clone())
    expected = ours(**(given := ours.get_random_inputs(1, 1)))[0]
    ours.share_memory()
    assert all(parameter.is_shared() for parameter in ours.parameters())
    assert (project_jointly((ours.q, ours.k, ours.v), given["hidden_states"]) is None) == separate
    assert torch.equal(ours(**given)[0], expected)


@torch.no_grad()
def test_replaced_weight_is_used_for_a_single_token(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    given = ours.get_random_inputs(1, 1)
    before = ours(**given)[0]
    ours.v.original_component.weight = torch.nn.Parameter(ours.v.original_component.weight * 2)
    torch.testing.assert_close(ours(**given)[0], before * 2)
    ours.v.original_component.weight.mul_(2)
    torch.testing.assert_close(ours(**given)[0], before * 4)
