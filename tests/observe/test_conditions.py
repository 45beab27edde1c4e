"""What a forward runs under, and that nothing of it stays behind."""

from __future__ import annotations

import pytest
import torch
from hugging_face import table_owners
from torch import nn
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot
from cgverify.observe.conditions import PLAIN, Conditions, Cotangent, Patch, apply_conditions
from cgverify.observe.generations import installed

CPU = torch.device("cpu")


@pytest.fixture
def attention(model: CodeGenForCausalLM) -> nn.Module:
    return model.transformer.h[0].attn.to(torch.bfloat16)


def dropout_rates(attention: nn.Module) -> list[float]:
    return [getattr(owner, name) for owner, name in installed().dropout_rates(attention)]


def test_dropout_is_on_in_training_mode_and_off_afterwards(attention: nn.Module) -> None:
    rates = dropout_rates(attention)
    with apply_conditions(Conditions(dropout=0.25), attention, attention, CPU):
        assert all(part.training for part in attention.modules())
        assert dropout_rates(attention) == [0.25, 0.25]
    assert not any(part.training for part in attention.modules())
    assert dropout_rates(attention) == rates


def test_a_table_is_cast_and_put_back_bit_for_bit(model: CodeGenForCausalLM) -> None:
    attention, (owner, *_) = model.transformer.h[0].attn, table_owners(model)
    table = owner.embed_positions
    for weight in attention.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    with apply_conditions(Conditions(cast_table=True), attention, model, CPU):
        assert owner.embed_positions.dtype == torch.bfloat16
        assert torch.equal(owner.embed_positions, table.to(torch.bfloat16))
    assert owner.embed_positions is table


@pytest.mark.parametrize("flag", ["use_attn_result", "use_split_qkv_input", "use_attn_in"])
def test_a_flag_is_on_for_the_bridge_and_off_afterwards_even_when_the_forward_fails(
    model: CodeGenForCausalLM, flag: str
) -> None:
    bridge = boot(model)
    node = bridge.blocks[0].attn

    def forward() -> None:
        with apply_conditions(Conditions(flags=(flag,)), node, bridge, CPU):
            assert getattr(node.config, flag)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        forward()
    assert not getattr(node.config, flag)


def test_a_random_state_is_the_same_each_time_and_the_global_one_is_kept() -> None:
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        with apply_conditions(Conditions(random_state=5), nn.Identity(), nn.Identity(), CPU):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_and_autocast_are_as_asked_for() -> None:
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.no_grad(), apply_conditions(Conditions(gradients=True, autocast=torch.bfloat16), linear, linear, CPU):
        y = linear(x)
    assert y.requires_grad
    assert y.dtype == torch.bfloat16
    with apply_conditions(PLAIN, linear, linear, CPU):
        y = linear(x)
    assert not y.requires_grad
    assert y.dtype == torch.float32


def test_hugging_face_has_neither_flags_nor_hooks() -> None:
    both = Conditions(dropout=0.1, random_state=3, flags=("use_attn_in",), patch=Patch("hook_q", 3))
    assert both.for_reference == Conditions(dropout=0.1, random_state=3)


def test_a_patch_is_one_tensor_in_every_dtype_and_another_for_every_tap_and_seed() -> None:
    seen = torch.zeros(2, 3, 4)
    patch = Patch("hook_q", 1)
    assert torch.equal(patch(seen), patch(seen + 1))
    assert torch.equal(patch(seen).to(torch.bfloat16), patch(seen.to(torch.bfloat16)))
    for other in (Patch("hook_k", 1), Patch("hook_q", 2)):
        assert (patch(seen) != other(seen)).all()


def test_rounded_conditions_draw_what_the_dtype_would_get() -> None:
    like = torch.zeros(2, 3, 4, dtype=torch.float64)
    plain = Conditions(gradients=True, patch=Patch("hook_q", 1), cotangent=Cotangent(1))
    rounded = plain.rounded_to(torch.bfloat16)
    for before, after in ((plain.patch, rounded.patch), (plain.cotangent, rounded.cotangent)):
        assert before is not None
        assert after is not None
        assert after(like).dtype == torch.float64
        assert torch.equal(after(like), before(like.bfloat16()).double())
        assert not torch.equal(after(like), before(like))
    assert PLAIN.rounded_to(torch.bfloat16) == PLAIN
