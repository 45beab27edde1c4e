"""The attention bridge against Hugging Face's module: the same bits, and every hook alive."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformers import CodeGenConfig, CodeGenForCausalLM, DynamicCache

from cgverify.bridge import CodeGenAttentionBridge, boot, split_qkv_matrix

HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, *HALF]


def both(model: CodeGenForCausalLM, dtype: torch.dtype, layer: int = 1) -> tuple[Any, Any]:
    """Hugging Face's attention and the bridge's, with the float32 table that `from_pretrained` leaves."""
    table = model.transformer.h[0].attn.embed_positions.clone()
    model = model.to(dtype)
    for block in model.transformer.h:
        block.attn.embed_positions = table.clone()
    return model.transformer.h[layer].attn, boot(copy.deepcopy(model)).blocks[layer].attn


def inputs(ours: Any, batch: int, seq: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    given: dict[str, torch.Tensor] = ours.get_random_inputs(batch, seq, dtype=dtype)
    return given


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (2, 8), (2, 9), (3, 40)])
@torch.no_grad()
def test_output_and_pattern_have_the_same_bits(
    model: CodeGenForCausalLM, dtype: torch.dtype, batch: int, seq: int
) -> None:
    theirs, ours = both(model, dtype)
    given = inputs(ours, batch, seq, dtype)
    for expected, found in zip(theirs(**given), ours(**given), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_soft_masks_gaps_and_shared_positions_have_the_same_bits(model: CodeGenForCausalLM, dtype: torch.dtype) -> None:
    theirs, ours = both(model, dtype)
    given = inputs(ours, 2, 8, dtype)
    lowest = torch.finfo(dtype).min
    soft = torch.randn(2, 1, 8, 8).to(dtype).masked_fill(given["attention_mask"] == lowest, lowest)
    for positions in (torch.randint(64, (2, 8)), torch.randint(64, (1, 8))):
        arguments = {**given, "attention_mask": soft, "position_ids": positions}
        assert torch.equal(ours(**arguments)[0], theirs(**arguments)[0])


@pytest.mark.parametrize("name", ["layer_past", "past_key_values"])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_prefill_and_decoding_through_a_cache_have_the_same_bits(
    model: CodeGenForCausalLM, dtype: torch.dtype, name: str
) -> None:
    theirs, ours = both(model, dtype)
    given = inputs(ours, 2, 12, dtype)
    caches = DynamicCache(), DynamicCache()
    start = 0
    for length in (8, 1, 1, 2):
        now = slice(start, start + length)
        step = {
            "hidden_states": given["hidden_states"][:, now],
            "position_ids": given["position_ids"][:, now],
            "attention_mask": given["attention_mask"][:, :, now, : now.stop],
        }
        expected = theirs(**step, layer_past=caches[0])
        found = ours(**step, **{name: caches[1]}, cache_position=torch.arange(start, now.stop))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        start = now.stop
    assert torch.equal(caches[1].layers[1].keys, caches[0].layers[1].keys)
    assert torch.equal(caches[1].layers[1].values, caches[0].layers[1].values)
    assert caches[1].layers[1].keys.dtype == dtype


@torch.no_grad()
def test_without_a_rotary_dim_the_whole_head_turns(config: CodeGenConfig) -> None:
    config.rotary_dim = 16
    theirs, ours = both(CodeGenForCausalLM(config).eval(), torch.float32)
    theirs.rotary_dim = ours.original_component.rotary_dim = None
    given = inputs(ours, 2, 8, torch.float32)
    assert torch.equal(ours(**given)[0], theirs(**given)[0])


@pytest.mark.parametrize("dtype", HALF)
def test_generate_runs_where_upstream_crashes(model: CodeGenForCausalLM, folder: Any, dtype: torch.dtype) -> None:
    bridge = boot(folder, dtype=dtype)
    tokens = torch.tensor([[5, 17, 3]])
    ours = bridge.generate(tokens, max_new_tokens=5, do_sample=False, stop_at_eos=False, verbose=False)
    theirs = CodeGenForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    expected = theirs.generate(tokens, max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_whole_model_logits_have_the_same_bits(folder: Any, dtype: torch.dtype) -> None:
    tokens = torch.randint(101, (2, 9))
    expected = CodeGenForCausalLM.from_pretrained(folder, dtype=dtype).eval()(tokens).logits
    assert torch.equal(boot(folder, dtype=dtype)(tokens), expected)


@torch.no_grad()
def test_every_hook_of_the_contract_fires_with_its_shape(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    _, cache = bridge.run_with_cache(torch.randint(101, (2, 5)))
    shapes = {name: tuple(cache[f"blocks.1.attn.{name}"].shape) for name in ("hook_in", "hook_out")}
    assert set(shapes.values()) == {(2, 5, 64)}
    for name in ("q.hook_out", "k.hook_out", "v.hook_out", "o.hook_in", "hook_rot_q", "hook_rot_k"):
        assert cache[f"blocks.1.attn.{name}"].shape == (2, 5, 4, 16), name
    for name in ("hook_attn_scores", "hook_pattern"):
        assert cache[f"blocks.1.attn.{name}"].shape == (2, 4, 5, 5), name
    assert torch.equal(cache["blocks.1.attn.hook_q"], cache["blocks.1.attn.q.hook_out"])


HOOKS = ["hook_in", "q.hook_out", "k.hook_out", "v.hook_out", "hook_rot_q", "hook_rot_k", "hook_attn_scores"]


@pytest.mark.parametrize("name", [*HOOKS, "hook_pattern", "o.hook_in", "hook_out"])
@torch.no_grad()
def test_what_a_hook_returns_is_used(model: CodeGenForCausalLM, name: str) -> None:
    bridge = boot(model)
    tokens = torch.randint(101, (1, 6))
    before = bridge(tokens)
    changed = bridge.run_with_hooks(tokens, fwd_hooks=[(f"blocks.0.attn.{name}", lambda x, hook: x.flip(-1))])
    assert not torch.allclose(before, changed)
    assert torch.equal(bridge(tokens), before)


@pytest.mark.parametrize(
    ("flag", "hooks"),
    [
        ("use_attn_result", ["hook_result"]),
        ("use_split_qkv_input", ["hook_q_input", "hook_k_input", "hook_v_input"]),
        ("use_attn_in", ["hook_attn_in"]),
    ],
)
@torch.no_grad()
def test_hooks_behind_a_flag_fire_per_head_and_keep_the_logits(
    model: CodeGenForCausalLM, flag: str, hooks: list[str]
) -> None:
    bridge = boot(model)
    tokens = torch.randint(101, (2, 5))
    plain = bridge(tokens)
    getattr(bridge, f"set_{flag}")(True)
    logits, cache = bridge.run_with_cache(tokens)
    for hook in hooks:
        assert cache[f"blocks.0.attn.{hook}"].shape == (2, 5, 4, 64)
    torch.testing.assert_close(logits, plain)


class Doubled(BaseTensorConversion):
    """Hooks see twice the tensor."""

    def handle_conversion(self, input_value: torch.Tensor, *context: Any) -> torch.Tensor:
        return input_value * 2

    def revert(self, input_value: torch.Tensor, *context: Any) -> torch.Tensor:
        return input_value / 2


@pytest.mark.parametrize(
    ("rule", "hook"),
    [
        ("qkv_conversion_rule", "q.hook_out"),
        ("attn_conversion_rule", "hook_in"),
        ("pattern_conversion_rule", "hook_pattern"),
    ],
)
@torch.no_grad()
def test_each_conversion_rule_that_is_given_is_applied(model: CodeGenForCausalLM, rule: str, hook: str) -> None:
    bridge = boot(model)
    attention = bridge.blocks[0].attn
    fresh = CodeGenAttentionBridge(
        "attn", bridge.cfg, split_qkv_matrix, submodules=dict(attention.submodules), **{rule: Doubled()}
    )
    fresh.set_original_component(attention.original_component)
    fresh.setup_hook_compatibility()
    given = fresh.get_random_inputs()
    seen = {}
    point = fresh.get_submodule(hook)
    point.add_hook(lambda tensor, hook: seen.update(hooked=tensor))
    pattern = fresh(**given)[1]
    plain = {
        "q.hook_out": fresh.q.original_component(given["hidden_states"]),
        "hook_in": given["hidden_states"],
        "hook_pattern": pattern,
    }
    assert torch.equal(seen["hooked"].flatten(), plain[hook].flatten() * 2)


def test_without_a_split_it_names_ours(model: CodeGenForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"cgverify\.bridge\.split_qkv_matrix"):
        CodeGenAttentionBridge("attn", boot(model).cfg)


def test_random_inputs_have_the_contracts_defaults(model: CodeGenForCausalLM) -> None:
    given = boot(model).blocks[0].attn.get_random_inputs()
    assert list(given) == ["hidden_states", "position_ids", "attention_mask"]
    assert given["hidden_states"].shape == (2, 8, 64)
    assert given["hidden_states"].dtype == torch.float32
    assert given["position_ids"].tolist() == [list(range(8))] * 2
    assert given["attention_mask"].shape == (2, 1, 8, 8)
    assert given["attention_mask"][0, 0, 0, 1] == torch.finfo(torch.float32).min


def test_the_three_linears_are_the_truth(model: CodeGenForCausalLM) -> None:
    """An edit of Q shows; the fused weight is never computed from."""
    attention = boot(model).blocks[0].attn
    given = attention.get_random_inputs()
    with torch.no_grad():
        before = attention(**given)[0]
        attention.original_component.qkv_proj.weight.zero_()
        with pytest.warns(UserWarning, match="refresh"):
            assert torch.equal(attention(**given)[0], before)
        attention._remember_fused()
        attention.q.original_component.weight.mul_(3)
        assert not torch.allclose(attention(**given)[0], before)


def test_positions_are_required(model: CodeGenForCausalLM) -> None:
    attention = boot(model).blocks[0].attn
    with pytest.raises(ValueError, match="position_ids"):
        attention(torch.randn(1, 2, 64))


def test_no_mask_is_causal(model: CodeGenForCausalLM) -> None:
    attention = boot(model).blocks[0].attn
    given = attention.get_random_inputs()
    unmasked = {**given, "attention_mask": None}
    assert torch.equal(attention(**unmasked)[0], attention(**given)[0])


def test_arguments_by_position_stand_as_in_hugging_face(model: CodeGenForCausalLM) -> None:
    attention = boot(model).blocks[0].attn
    given = attention.get_random_inputs()
    by_position = attention(given["hidden_states"], None, given["attention_mask"], given["position_ids"])
    assert torch.equal(by_position[0], attention(**given)[0])


def test_dropout_draws_what_hugging_face_draws(config: CodeGenConfig) -> None:
    config.attn_pdrop = config.resid_pdrop = 0.3
    theirs, ours = both(CodeGenForCausalLM(config), torch.float32)
    given = inputs(ours, 2, 8, torch.float32)
    found = []
    for side in (theirs.train(), ours.train()):
        torch.manual_seed(5)
        found.append(side(**given)[0])
    assert torch.equal(*found)
    assert (found[0] == 0).any()
