"""Training has the dropout, the gradients and the loss of Hugging Face."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sides import both, small_config
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot, join_weight


@pytest.mark.parametrize("which", ["attn_pdrop", "resid_pdrop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_draws_what_hugging_face_draws(which: str, dtype: torch.dtype) -> None:
    theirs, ours = both(CodeGenForCausalLM(small_config(**{which: 0.3})), dtype)
    given = ours.get_random_inputs(2, 8, dtype=dtype)
    found = []
    for side in (theirs.train(), ours.train()):
        torch.manual_seed(5)
        found.append(side(**given))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert (found[0][which == "attn_pdrop"] == 0).any()


def gradients(model: CodeGenForCausalLM, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return both sides' gradients of input and weights; those of q, k and v joined into the fused layout."""
    theirs, ours = both(model, dtype)
    given = ours.get_random_inputs(2, 9, dtype=dtype)
    weights = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = []
    for side in (theirs, ours):
        hidden = given["hidden_states"].clone().requires_grad_()
        (side(**{**given, "hidden_states": hidden})[0] * weights).sum().backward()
        found.append({"hidden_states": hidden.grad})
    found[0] |= {"qkv_proj": theirs.qkv_proj.weight.grad, "out_proj": theirs.out_proj.weight.grad}
    joined = join_weight(*(side.original_component.weight.grad for side in (ours.q, ours.k, ours.v)))
    found[1] |= {"qkv_proj": joined, "out_proj": ours.o.original_component.weight.grad}
    return found[0], found[1]


def test_gradients_of_input_and_weights_agree() -> None:
    """In float64, where another order of summation differs by 1e-16 and a wrong gradient by far more."""
    torch.manual_seed(0)
    theirs, ours = gradients(CodeGenForCausalLM(small_config(initializer_range=0.2)).eval(), torch.float64)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        # Scores are float32 products on both sides, whatever the model's dtype.
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6)
        assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_as_exact_as_hugging_faces(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = CodeGenForCausalLM(small_config(initializer_range=0.2)).eval().to(dtype)
    truth = gradients(copy.deepcopy(model).to(torch.float64), torch.float64)[0]
    theirs, ours = gradients(model, dtype)
    for name, exact in truth.items():
        their_error = (theirs[name].double() - exact).norm()
        assert (ours[name].double() - exact).norm() <= 2 * their_error, name


@pytest.mark.parametrize("frozen", ["q", "k", "v"])
@pytest.mark.parametrize(("dtype", "seq"), [(torch.float32, 1), (torch.float32, 4), (torch.bfloat16, 4)])
def test_frozen_projection_leaves_gradients_of_the_others(
    model: CodeGenForCausalLM, frozen: str, dtype: torch.dtype, seq: int
) -> None:
    _, ours = both(model, dtype)
    getattr(ours, frozen).requires_grad_(False)
    ours(**ours.get_random_inputs(1, seq, dtype=dtype))[0].square().sum().backward()
    for which in "qkv":
        assert (getattr(ours, which).original_component.weight.grad is None) == (which == frozen)


def losses(model: Any, batches: list[torch.Tensor], threads: int) -> list[float]:
    """Return the loss of each step of SGD on batches of tokens."""
    torch.set_num_threads(threads)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    curve = []
    for tokens in batches:
        logits = model(tokens)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


@pytest.mark.parametrize("keep_fused", [True, False])
def test_ten_steps_of_sgd_have_the_same_losses(keep_fused: bool) -> None:
    torch.manual_seed(0)
    model = CodeGenForCausalLM(small_config(n_embd=128, n_head=8, vocab_size=256, initializer_range=0.1)).train()
    batches = list(torch.randint(256, (10, 8, 48), generator=torch.Generator().manual_seed(1)))
    one, two = (losses(copy.deepcopy(model), batches, threads) for threads in (1, 2))
    ours = losses(boot(copy.deepcopy(model), keep_fused=keep_fused).train(), batches, 2)
    between_threads = max(abs(a - b) for a, b in zip(one, two, strict=True))
    rounding = torch.finfo(torch.float32).eps * two[0]  # two threads may give the bits of one
    assert max(abs(a - b) for a, b in zip(ours, two, strict=True)) <= 4 * max(between_threads, rounding)
    assert two[-1] < two[0]
