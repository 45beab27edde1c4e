"""Attention and MLP of one token: the bits of all steps if no hook is attached, and all steps if one is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CodeGenForCausalLM, DynamicCache

from cgverify.bridge import CodeGenAttentionBridge, boot, one_token
from cgverify.bridge.booting import adapter_with, bridge_from

TOKENS = torch.randint(101, (1, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of attention took the short way."""
    taken: list[bool] = []
    attend = one_token.attend_one_token

    def recording(*args: Any) -> Any:
        found = attend(*args)
        taken.append(found is not None)
        return found

    monkeypatch.setattr("cgverify.bridge.attention.attend_one_token", recording)
    return taken


def decoded(model: Any, steps: int = 3) -> list[Tensor]:
    """Return the logits of a prefix and of each token after it."""
    cache, found = DynamicCache(config=getattr(model, "original_model", model).config), []
    name = "past_key_values" if hasattr(model, "original_model") else _cache_name(model)
    for part in TOKENS.split([6 - steps, *[1] * steps], dim=1):
        output = model(part, use_cache=True, **{name: cache})
        found.append(output if isinstance(output, Tensor) else output.logits)
    return found


def _cache_name(model: Any) -> str:
    return "cache" if hasattr(model.transformer, "rotary_emb") else "past_key_values"


@torch.no_grad()
def test_decoded_tokens_have_hugging_faces_bits(model: CodeGenForCausalLM, quick: list[bool]) -> None:
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    found = decoded(boot(model))
    assert all(map(torch.equal, found, decoded(reference)))
    layers = model.config.n_layer
    assert quick == [False] * layers + [True] * 3 * layers


@torch.no_grad()
def test_each_hook_of_a_block_sees_one_token(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    seen: list[str] = []
    expected = bridge(TOKENS[:, :1])
    flagged = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in", "hook_result", "hook_mlp_in")
    names = [name for name in bridge.hook_dict if name.startswith("blocks.0.") and not name.endswith(flagged)]
    for name in names:
        found = bridge.run_with_hooks(TOKENS[:, :1], fwd_hooks=[(name, lambda tensor, hook: seen.append(hook.name))])
        assert torch.equal(found, expected)
        assert len(seen) == 1, name
        seen.clear()


FORWARDS = [
    "ln1.original_component",
    "attn.v.original_component",
    "attn.o.original_component",
    "attn.original_component.resid_dropout",
    "mlp.original_component",
    "mlp.out.original_component",
    "mlp.original_component.act",
    "mlp.original_component.dropout",
]
MODULES = [*FORWARDS, "ln1", "attn", "attn.original_component", "attn.q", "attn.qkv", "attn.o", "mlp", "mlp.in"]


@pytest.mark.parametrize("path", MODULES)
@torch.no_grad()
def test_torch_hooks_of_a_block_see_one_token(model: CodeGenForCausalLM, path: str) -> None:
    bridge, seen = boot(model), []
    _at(bridge.blocks[0], path).register_forward_hook(lambda *_: seen.append(path))
    bridge(TOKENS[:, :1])
    assert seen == [path]


@pytest.mark.parametrize("path", [path for path in MODULES if path != "attn.qkv"])
@torch.no_grad()
def test_global_hooks_see_one_token(model: CodeGenForCausalLM, path: str) -> None:
    bridge, seen = boot(model), []
    module = _at(bridge.blocks[0], path)
    handle = nn.modules.module.register_module_forward_hook(lambda called, *_: seen.append(called))
    try:
        bridge(TOKENS[:, :1])
    finally:
        handle.remove()
    assert [called for called in seen if called is module] == [module]


@pytest.mark.parametrize("path", FORWARDS)
@torch.no_grad()
def test_replaced_forwards_of_a_block_are_called(model: CodeGenForCausalLM, path: str) -> None:
    bridge, seen = boot(model), []
    module = _at(bridge.blocks[0], path)
    forward = module.forward
    module.forward = lambda *args: (seen.append(path), forward(*args))[1]
    bridge(TOKENS[:, :1])
    assert seen == [path]


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


@pytest.mark.parametrize("step", one_token._LEFT_OUT)
@pytest.mark.parametrize("where", ["subclass", "class", "instance"])
@torch.no_grad()
def test_a_replaced_step_is_called(
    model: CodeGenForCausalLM, monkeypatch: pytest.MonkeyPatch, step: str, where: str
) -> None:
    called: list[str] = []
    original = getattr(CodeGenAttentionBridge, step)

    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(step)
        return original(self, *args, **kwargs)

    if where == "subclass":
        bridge = bridge_from(model, adapter_with(type("Other", (CodeGenAttentionBridge,), {step: replacement}))).eval()
    else:
        bridge = boot(model)
    if where == "class":
        monkeypatch.setattr(CodeGenAttentionBridge, step, replacement)
    elif where == "instance":
        attn = bridge.blocks[0].attn
        object.__setattr__(attn, step, lambda *args, **kwargs: replacement(attn, *args, **kwargs))
    bridge(TOKENS[:, :1])
    assert called


@pytest.mark.parametrize(
    "prepare",
    [
        lambda bridge: bridge.train(),
        lambda bridge: bridge.blocks[0].attn.original_component.resid_dropout.train(),
        lambda bridge: bridge.set_use_attn_result(True),
        lambda bridge: bridge.set_use_split_qkv_input(True),
        lambda bridge: bridge.to(torch.bfloat16),
        lambda bridge: setattr(bridge.blocks[0].attn.k.original_component, "weight", nn.Parameter(torch.ones(64, 64))),
    ],
)
@torch.no_grad()
def test_short_way_is_not_taken_for_more_than_plain_steps(
    model: CodeGenForCausalLM, quick: list[bool], prepare: Any
) -> None:
    bridge = boot(model)
    bridge(TOKENS[:, :1])
    prepare(bridge)
    bridge(TOKENS[:, :1])
    layers = model.config.n_layer
    assert quick[:layers] == [True] * layers
    assert not quick[layers]


def test_gradients_of_one_token_are_recorded(model: CodeGenForCausalLM, quick: list[bool]) -> None:
    bridge = boot(model)
    bridge(TOKENS[:, :1])[0, 0, 0].backward()
    assert bridge.blocks[0].attn.o.original_component.weight.grad is not None
    assert not any(quick)
