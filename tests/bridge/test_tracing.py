"""Tracing, exporting, compiling and transforming the bridge, compared with Hugging Face's module."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import accelerate
import pytest
import torch
from hugging_face import eager
from sides import both, of_shape
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot

TOKENS = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grad", [True, False])
def test_jit_trace_has_the_output_of_hugging_face(model: CodeGenForCausalLM, grad: bool) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(1, 6)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(ours, example_kwarg_inputs=given)
    later = ours.get_random_inputs(1, 6)
    for found, expected in zip(traced(**later), theirs(**later), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("hooked", [False, True])
def test_export_has_the_output_of_hugging_face_and_no_warning(model: CodeGenForCausalLM, hooked: bool) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(1, 6)
    if hooked:
        ours.hook_pattern.add_hook(lambda tensor, hook: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exported = torch.export.export(ours, (), given).module()
    assert not [warning for warning in caught if "qkv_proj" in str(warning.message)]
    later = ours.get_random_inputs(1, 6)
    for found, expected in zip(exported(**later), theirs(**later), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("hooked", [False, True])
@torch.no_grad()
def test_compiled_attention_agrees_with_hugging_face(hooked: bool) -> None:
    theirs, ours = of_shape(4, 16, 8, torch.float32)
    ours = copy.deepcopy(ours)
    given = ours.get_random_inputs(2, 12)
    expected = theirs(**given)
    seen: list[Tensor] = []
    if hooked:
        ours.hook_pattern.add_hook(lambda tensor, hook: seen.append(tensor))
        ours.qkv.original_component.register_forward_hook(lambda module, args, output: seen.append(output))
    torch._dynamo.reset()
    counters.clear()
    found = torch.compile(ours)(**given)
    assert counters["stats"]["calls_captured"] > 10  # the compiled code ran
    assert hooked or counters["stats"]["unique_graphs"] == 1  # as a whole
    for ours_now, before in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_now, before)
    assert len(seen) == (2 if hooked else 0)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_bridge_with_hooks_has_the_logits(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    expected = bridge(TOKENS)
    seen: list[Tensor] = []
    for name in ("blocks.0.ln1.hook_normalized", "blocks.1.attn.hook_z", "ln_final.hook_scale"):
        bridge.add_hook(name, lambda tensor, hook: seen.append(tensor))
    torch._dynamo.reset()
    found = torch.compile(bridge)(TOKENS)
    torch.testing.assert_close(found, expected)
    assert len(seen) == 3


def loss_of(module: Any, given: dict[str, Any]) -> Any:
    def loss(hidden_states: Tensor) -> Tensor:
        return module(**{**given, "hidden_states": hidden_states})[0].square().sum()  # type: ignore[no-any-return]

    return loss


@pytest.mark.parametrize("hooked", [False, True])
def test_function_transforms_agree_with_hugging_face(model: CodeGenForCausalLM, hooked: bool) -> None:
    theirs, ours = both(model, torch.float64)
    given = ours.get_random_inputs(1, 5, dtype=torch.float64)
    hidden, tangent = torch.randn(2, 1, 5, 64, dtype=torch.float64)
    if hooked:
        ours.hook_pattern.add_hook(lambda tensor, hook: None)
        ours.qkv.hook_out.add_hook(lambda tensor, hook: None)
    sides = [loss_of(side, given) for side in (theirs, ours)]
    for transform in (
        lambda loss: torch.func.grad(loss)(hidden),
        lambda loss: torch.func.jvp(loss, (hidden,), (tangent,))[1],
        lambda loss: torch.func.vjp(loss, hidden)[1](torch.tensor(1.0, dtype=torch.float64))[0],
        lambda loss: torch.func.vmap(torch.func.grad(loss))(torch.stack((hidden, tangent))),
        lambda loss: torch.func.jacfwd(loss)(hidden),
    ):
        expected, found = (transform(side) for side in sides)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # scores are float32 on both sides


def test_functional_call_of_the_bridge_uses_the_given_weights(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    given = ours.get_random_inputs(1, 5)
    weights = {name: weight * 2 for name, weight in ours.named_parameters() if name.startswith("v.")}
    assert weights
    with torch.no_grad():
        twice = torch.func.functional_call(ours, weights, (), given, tie_weights=False)[0]
        torch.testing.assert_close(twice, 2 * ours(**given)[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_checkpointing_has_the_gradients_of_hugging_face(
    model: CodeGenForCausalLM, reentrant: bool, hooked: bool
) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(1, 5)
    if hooked:
        ours.hook_pattern.add_hook(lambda tensor, hook: None)
        ours.qkv.original_component.register_forward_hook(lambda *_: None)
    gradients = []
    for side, recomputed in ((theirs, False), (ours, True)):
        hidden = given["hidden_states"].clone().requires_grad_()

        def run(tensor: Tensor, side: Any = side) -> Tensor:
            return side(**{**given, "hidden_states": tensor})[0]  # type: ignore[no-any-return]

        output = checkpoint(run, hidden, use_reentrant=reentrant) if recomputed else run(hidden)
        output.square().sum().backward()
        gradients.append([hidden.grad, side.out_proj.weight.grad if side is theirs else side.o.weight.grad])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected)


def test_gradient_checkpointing_leaves_gradients_as_they_are(model: CodeGenForCausalLM) -> None:
    """Hugging Face's own switch, on the model that the bridge changed."""
    losses, gradients = [], []
    for switched in (False, True):
        bridge = boot(copy.deepcopy(model)).train()
        if switched:
            bridge.original_model.gradient_checkpointing_enable()
        bridge.add_hook("blocks.0.ln1.hook_normalized", lambda tensor, hook: None)
        loss = bridge(TOKENS, return_type="loss")
        loss.backward()
        losses.append(loss.item())
        gradients.append(bridge.blocks[0].attn.q.original_component.weight.grad)
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("hooked", [False, True])
@torch.no_grad()
def test_accelerate_offload_has_the_logits(model: CodeGenForCausalLM, hooked: bool) -> None:
    """Weights are on the meta device, and accelerate fetches them for each module's forward."""
    expected = eager(model)(TOKENS).logits
    accelerate.cpu_offload(model, torch.device("cpu"))
    bridge = boot(model)
    fused = bridge.blocks[0].attn.qkv.original_component
    assert next(fused.parameters()).is_meta
    found = bridge.run_with_cache(TOKENS)[0] if hooked else bridge(TOKENS)
    assert torch.equal(found, expected)
    assert next(fused.parameters()).is_meta


@torch.no_grad()
def test_accelerate_dispatch_has_the_logits(model: CodeGenForCausalLM) -> None:
    expected = eager(model)(TOKENS).logits
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    bridge = boot(model)
    assert torch.equal(bridge(TOKENS), expected)
    assert type(bridge.blocks[0].attn.q.original_component) is torch.nn.Linear
