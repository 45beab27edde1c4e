"""Without hooks a forward does not call TransformerLens's hook points, and a generation computes few logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import block, embedding
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot
from cgverify.bridge.components import FastUnembeddingBridge

TOKENS = torch.randint(101, (2, 6), generator=torch.Generator().manual_seed(0))


class Refusing:
    """Replaces a part of TransformerLens that must not be reached."""

    def __call__(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the long way was taken")

    signature = __call__


@torch.no_grad()
def test_unhooked_forward_takes_the_short_way(model: CodeGenForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    bridge = boot(model)
    monkeypatch.setattr(HookPoint, "__call__", Refusing())
    monkeypatch.setattr(GeneralizedComponent, "__call__", Refusing())
    for module in (block, embedding):
        monkeypatch.setattr(module, "inspect", Refusing())
    bridge(TOKENS, use_cache=True)
    bridge.blocks[0].mlp.hook_out.add_hook(lambda tensor, hook: None)
    with pytest.raises(AssertionError, match="long way"):
        bridge(TOKENS)


@torch.no_grad()
def test_hooks_of_a_fork_are_there_only_under_its_flag(model: CodeGenForCausalLM) -> None:
    bridge, seen = boot(model), []
    bridge.blocks[1].hook_mlp_in.add_hook(lambda tensor, hook: seen.append(tensor))
    for on in (False, True, False):
        bridge.set_use_hook_mlp_in(on)
        bridge(TOKENS, stop_at_layer=2)
        assert bool(bridge.blocks[1].ln1._forward_pre_hooks) == on
        assert bool(bridge.blocks[1].mlp._forward_pre_hooks) == on
    assert len(seen) == 1


@pytest.mark.parametrize("hooked", [None, "unembed.hook_in", "unembed.hook_out", "lm_head"])
def test_generation_computes_all_logits_only_if_seen(
    model: CodeGenForCausalLM, monkeypatch: pytest.MonkeyPatch, hooked: str | None
) -> None:
    given: list[int] = []
    forward = FastUnembeddingBridge.forward

    def recording(self: Any, hidden_states: Tensor, **kwargs: Any) -> Any:
        given.append(hidden_states.shape[1])
        return forward(self, hidden_states, **kwargs)

    monkeypatch.setattr(FastUnembeddingBridge, "forward", recording)
    bridge = boot(model)
    if hooked == "lm_head":
        bridge.unembed.original_component.register_forward_hook(lambda *_: None)
    elif hooked:
        bridge.get_submodule(hooked).add_hook(lambda tensor, hook: None)
    how: dict[str, Any] = {"max_new_tokens": 2, "max_tokens_per_yield": 1, "do_sample": False, "stop_at_eos": False}
    for _ in bridge.generate_stream(TOKENS, verbose=False, **how):
        bridge(TOKENS)
    assert given == [6 if hooked else 1, 6, 1, 6]  # a forward between two steps has all logits


def test_generation_has_the_logits_of_hugging_face(model: CodeGenForCausalLM) -> None:
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    settings: dict[str, Any] = {"return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    theirs: Any = reference.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **settings, **how)
    ours = boot(model).generate(TOKENS, stop_at_eos=False, verbose=False, **how)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(map(torch.equal, ours.logits, theirs.logits))
