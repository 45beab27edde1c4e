"""The activation in pieces: values and gradients of Hugging Face's, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sides import small_config
from torch import Tensor
from transformers import CodeGenForCausalLM
from transformers.activations import NewGELUActivation

from cgverify.bridge import activation, boot
from cgverify.bridge.activation import GeluNew


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "PIECE", 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 5, 40), (3, 0, 8), (7,)])
def test_value_and_gradient_have_hugging_faces_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = (4 * torch.randn(shape)).to(dtype)
    grad = torch.randn(shape).to(dtype)
    found = []
    for act in (GeluNew(), NewGELUActivation()):
        x = values.clone().requires_grad_()
        y = act(x)
        y.backward(grad)
        assert x.grad is not None
        found.append((act(values), y, x.grad))
        assert torch.equal(x, values)
    assert all(map(torch.equal, *found))


def test_special_values_have_hugging_faces_bits() -> None:
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38, -9.0])
    found, expected = GeluNew()(x), NewGELUActivation()(x)
    assert torch.equal(found.view(torch.int32)[:4], expected.view(torch.int32)[:4])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_second_derivative_is_that_of_the_formula() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(GeluNew(), x)
    assert torch.autograd.gradgradcheck(GeluNew(), x)


@pytest.mark.parametrize(
    "transform",
    [
        lambda act, x: torch.func.jvp(act, (x,), (x + 1,))[1],
        lambda act, x: torch.func.vmap(torch.func.grad(lambda row: act(row).sum()))(x),
        lambda act, x: torch.func.hessian(lambda row: act(row).sum())(x[0]),
        lambda act, x: act(x.mT),
        lambda act, x: torch.jit.trace(act, x)(x * 2),
    ],
)
def test_transform_agrees_with_hugging_face(transform: Any) -> None:
    x = torch.randn(8, 10)
    assert torch.equal(transform(GeluNew(), x), transform(NewGELUActivation(), x))


def test_booted_mlp_has_the_activation_with_its_hooks(model: CodeGenForCausalLM) -> None:
    seen: list[Tensor] = []
    model.transformer.h[1].mlp.act.register_forward_hook(lambda module, args, output: seen.append(output))
    bridge = boot(model)
    assert all(type(block.mlp.original_component.act) is GeluNew for block in bridge.blocks)
    _, cache = bridge.run_with_cache(torch.arange(6)[None])
    assert torch.equal(seen[0], cache["blocks.1.mlp.hook_post"])
    assert torch.equal(seen[0], NewGELUActivation()(cache["blocks.1.mlp.hook_pre"]))


def test_other_activation_stays_as_it_is() -> None:
    bridge = boot(CodeGenForCausalLM(small_config(activation_function="relu")))
    assert not isinstance(bridge.blocks[0].mlp.original_component.act, NewGELUActivation)
