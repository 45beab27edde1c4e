"""Layer norms: what their hooks show is what is used, with the bits of Hugging Face's module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sides import small_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
POINTS = ("hook_scale", "hook_normalized")
Hook = Callable[[Tensor, Any], Tensor | None]


def norms(width: int, dtype: torch.dtype = torch.float32) -> tuple[nn.LayerNorm, Any]:
    """Hugging Face's layer norm and a bridge of it, with gains and biases as in a trained model."""
    torch.manual_seed(width)
    model = CodeGenForCausalLM(small_config(n_embd=width, n_layer=1, rotary_dim=4)).eval()
    with torch.no_grad():
        for parameter in model.transformer.ln_f.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model = model.to(dtype)
    theirs = copy.deepcopy(model.transformer.ln_f)
    return theirs, boot(model).ln_final


def gradients(norm: Any, x: Tensor, weights: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The gradients of x, weight and bias."""
    leaf = x.clone().requires_grad_()
    output = norm(leaf)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)
    return list(torch.autograd.grad(output, [leaf, *weights], cotangent))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 36, 100, 192, 1024])
def test_norm_that_is_listened_to_has_hugging_faces_bits(width: int, dtype: torch.dtype) -> None:
    theirs, ours = norms(width, dtype)
    weights = (ours.original_component.weight, ours.original_component.bias)
    for shape in ((1, 1), (2, 9), (3, 37)):
        x = (torch.randn(*shape, width) * 4 + 1).to(dtype)
        expected = gradients(theirs, x, (theirs.weight, theirs.bias))
        for hook in (lambda tensor, hook: None, lambda tensor, hook: tensor.clone()):
            for point in POINTS:
                getattr(ours, point).add_hook(hook)
            with torch.no_grad():
                assert torch.equal(ours(x), theirs(x))
            with torch.inference_mode():
                assert torch.equal(ours(x), theirs(x))
            assert torch.equal(ours(x), theirs(x))
            if hook(x, None) is None:  # a hook that returns another tensor has another graph
                for found, gradient in zip(gradients(ours, x, weights), expected, strict=True):
                    assert torch.equal(found, gradient)
            for point in POINTS:
                getattr(ours, point).remove_hooks()


@torch.no_grad()
def test_norm_with_a_forward_of_its_own_runs_as_it_is() -> None:
    """A module whose forward was replaced must not compute something else while a hook listens."""
    _, ours = norms(16)
    ours.original_component.forward = lambda x: x * 3
    x = torch.randn(2, 3, 16)
    for point in POINTS:
        getattr(ours, point).add_hook(lambda tensor, hook: None)
    assert torch.equal(ours(x), x * 3)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_scale_and_normalized_have_their_definition(dtype: torch.dtype) -> None:
    theirs, ours = norms(64, dtype)
    x = (torch.randn(2, 9, 64) * 4 + 1).to(dtype)
    seen: dict[str, Tensor] = {}
    for point in POINTS:
        getattr(ours, point).add_hook(lambda tensor, hook: seen.update({hook.name: tensor.clone()}))
    ours(x)
    exact = x.double()
    scale = (exact.var(-1, unbiased=False, keepdim=True) + theirs.eps).sqrt()
    for tensor, expected in zip(seen.values(), (scale, (exact - exact.mean(-1, keepdim=True)) / scale), strict=True):
        assert tensor.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(tensor, expected.to(tensor.dtype))


@torch.no_grad()
def test_edit_in_place_of_a_norm_moves_the_logits(nano: Path) -> None:
    bridge, tokens = boot(nano), torch.tensor([list(b"def f(x): return x")])
    plain = bridge(tokens)
    for point in ("blocks.1.ln1.hook_normalized", "ln_final.hook_normalized", "blocks.1.ln1.hook_scale"):
        edits = (edit_a_clone, edit_in_place_and_return, edit_in_place)
        logits = [bridge.run_with_hooks(tokens, fwd_hooks=[(point, edit)]) for edit in edits]
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2])
        assert not torch.allclose(logits[0], plain)
    _, cache = bridge.run_with_cache(tokens)
    assert torch.equal(bridge.run_with_hooks(tokens, fwd_hooks=[("ln_final.hook_scale", lambda x, hook: x)]), plain)
    assert "ln_final.hook_normalized" in cache


def edit_a_clone(tensor: Tensor, hook: Any) -> Tensor:
    tensor = tensor.clone()
    tensor[:, 3] = 0.5
    return tensor


def edit_in_place_and_return(tensor: Tensor, hook: Any) -> Tensor:
    tensor[:, 3] = 0.5
    return tensor


def edit_in_place(tensor: Tensor, hook: Any) -> None:
    tensor[:, 3] = 0.5


@pytest.mark.parametrize("grad", ["no_grad", "inference_mode", "autograd"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("point", POINTS)
def test_edits_of_a_norm_take_effect_in_place_or_not(point: str, dtype: torch.dtype, grad: str) -> None:
    theirs, ours = norms(64, dtype)
    x = torch.randn(2, 9, 64).to(dtype)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "autograd": torch.enable_grad}[grad]
    found = []
    for edit in (edit_a_clone, edit_in_place_and_return, edit_in_place):
        with context():
            getattr(ours, point).add_hook(edit)
            found.append(ours(x.clone().requires_grad_(grad == "autograd")))
            getattr(ours, point).remove_hooks()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    plain = theirs(x)
    rest = [i for i in range(9) if i != 3]
    assert torch.equal(found[0][:, rest], plain[:, rest])
    assert not torch.allclose(found[0][:, 3], plain[:, 3])
    if point == "hook_normalized":
        edited = torch.full((64,), 0.5) * theirs.weight.float() + theirs.bias.float()
        torch.testing.assert_close(found[0][0, 3].float(), edited, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_arrives_at_what_a_hook_was_shown(dtype: torch.dtype) -> None:
    theirs, ours = norms(64, dtype)
    x = torch.randn(2, 9, 64).to(dtype).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor, hook: Any) -> None:
        tensor.retain_grad()
        kept.append(tensor)

    for point in POINTS:
        getattr(ours, point).add_hook(keep)
    cotangent = torch.randn_like(x)
    ours(x).backward(cotangent)
    scale, normalized = kept
    of_normalized = cotangent.float() * theirs.weight.float()
    torch.testing.assert_close(normalized.grad, of_normalized)
    of_scale = -(of_normalized * normalized.detach()).sum(-1, keepdim=True) / scale.detach()
    torch.testing.assert_close(scale.grad, of_scale)


def test_loss_on_what_a_hook_was_shown_reaches_the_input() -> None:
    """A hook may compute more from the tensor, such as a penalty, next to the norm's own output."""
    theirs, ours = norms(64, torch.float64)
    x = torch.randn(2, 9, 64, dtype=torch.float64)
    shown: list[Tensor] = []
    for point in POINTS:
        getattr(ours, point).add_hook(lambda tensor, hook: shown.append(tensor))
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    output = ours(found)
    (output.sin().sum() + (shown[0] ** 2).sum() + (shown[1] ** 3).sum()).backward(retain_graph=True)
    scale = (expected.var(-1, unbiased=False, keepdim=True) + theirs.eps).sqrt()
    normalized = (expected - expected.mean(-1, keepdim=True)) / scale
    (theirs(expected).sin().sum() + (scale**2).sum() + (normalized**3).sum()).backward()
    torch.testing.assert_close(found.grad, expected.grad)
    before = torch.autograd.grad(output.sum(), shown[1], retain_graph=True)  # leaves nothing for the next backward
    (alone,) = torch.autograd.grad((shown[1] ** 3).sum(), found)
    assert before[0].abs().max() > 0
    (alone_expected,) = torch.autograd.grad((_normalized(x, theirs.eps, expected) ** 3).sum(), expected)
    torch.testing.assert_close(alone, alone_expected)


def _normalized(_: Tensor, eps: float, x: Tensor) -> Tensor:
    scale = (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()
    return (x - x.mean(-1, keepdim=True)) / scale


@pytest.mark.parametrize("point", POINTS)
def test_backward_hook_changes_the_gradient(point: str) -> None:
    _, ours = norms(64)
    x = torch.randn(2, 9, 64).requires_grad_()
    getattr(ours, point).add_hook(lambda gradient, hook: (torch.zeros_like(gradient),), dir="bwd")
    ours(x).square().sum().backward()
    if point == "hook_normalized":
        assert (x.grad == 0).all()
    else:  # as if the scale were a constant
        ours.hook_scale.remove_hooks(dir="bwd")
        again = x.detach().clone().requires_grad_()
        ours.hook_scale.add_hook(lambda scale, hook: scale.detach())
        ours(again).square().sum().backward()
        torch.testing.assert_close(x.grad, again.grad)


def test_second_derivatives_agree() -> None:
    theirs, ours = norms(64, torch.float64)
    x = torch.randn(1, 3, 64, dtype=torch.float64)
    ours.hook_normalized.add_hook(lambda tensor, hook: None)
    found = []
    for norm in (theirs, ours):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(norm(leaf).sin().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(found[1], found[0])


def test_transforms_and_checkpointing_agree() -> None:
    theirs, ours = norms(64, torch.float64)
    x, tangent = torch.randn(2, 2, 3, 64, dtype=torch.float64)
    ours.hook_normalized.add_hook(lambda tensor, hook: None)
    for run in (
        lambda norm: torch.func.jvp(norm, (x,), (tangent,))[1],
        lambda norm: torch.func.vmap(norm)(x),
        lambda norm: torch.func.grad(lambda y: norm(y).sin().sum())(x),
        lambda norm: checkpoint(norm, x.clone().requires_grad_(), use_reentrant=False),
    ):
        torch.testing.assert_close(run(ours), run(theirs))


class Chosen(nn.Module):
    """Choose between a layer norm and a trained copy of it, as an adapter does."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.original, self.trained = norm, copy.deepcopy(norm)
        nn.init.constant_(self.trained.weight, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.trained(x)  # type: ignore[no-any-return]


@torch.no_grad()
def test_wrapped_norm_is_used_with_and_without_hooks(model: CodeGenForCausalLM) -> None:
    model.transformer.ln_f = Chosen(model.transformer.ln_f)
    x = torch.randn(2, 9, 64)
    expected = model.transformer.ln_f(x)
    ours = boot(model).ln_final
    assert torch.equal(ours(x), expected)
    ours.hook_normalized.add_hook(edit_in_place)
    changed = ours(x)
    assert torch.equal(changed[:, 4:], expected[:, 4:])
    torch.testing.assert_close(changed[0, 3], torch.full((64,), 0.5) * 2)


@torch.no_grad()
def test_torch_hooks_on_a_norm_fire_with_ours(model: CodeGenForCausalLM) -> None:
    ours = boot(model).ln_final
    fired: list[Any] = []
    ours.original_component.register_forward_hook(lambda module, args, output: fired.append((module, output)))
    ours.hook_normalized.add_hook(edit_in_place)
    found = ours(torch.randn(2, 9, 64))
    assert fired[0][0] is ours.original_component
    assert torch.equal(fired[0][1], found)
    assert "forward" not in ours.original_component.__dict__
