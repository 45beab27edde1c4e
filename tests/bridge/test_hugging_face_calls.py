"""What Hugging Face's tests of CodeGen ask of a model, asked of the model whose blocks are our bridges."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hugging_face import eager
from sides import small_config
from torch import Tensor
from transformers import CodeGenForCausalLM, DynamicCache, StaticCache

from cgverify.bridge import boot

TOKENS = torch.randint(1, 101, (2, 7), generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
GREEDY: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SAMPLED: dict[str, Any] = {**GREEDY, "do_sample": True, "temperature": 0.8, "top_k": 20}


def _generate(model: Any, **how: Any) -> list[Tensor]:
    torch.manual_seed(3)
    given = {"attention_mask": PADDED, **GREEDY, **how}
    found: Any = model.generate(TOKENS, output_logits=True, return_dict_in_generate=True, **given)
    return [found.sequences, *found.logits]


def _continued(model: Any, mask: Tensor | None, later: int) -> list[Tensor]:
    """The last tokens after a cache of the others."""
    past = DynamicCache()
    given = [None, None] if mask is None else [mask[:, :-later], mask]
    first = model(TOKENS[:, :-later], attention_mask=given[0], use_cache=True, past_key_values=past)
    second = model(TOKENS[:, -later:], attention_mask=given[1], use_cache=True, past_key_values=past)
    assert past.get_seq_length() == 7
    return [first.logits, second.logits]


def _from_cache(model: Any) -> list[Tensor]:
    """A generation that goes on with the cache of another one."""
    first = model.generate(TOKENS, return_dict_in_generate=True, attention_mask=torch.ones_like(TOKENS), **GREEDY)
    more: Any = torch.cat((first.sequences, TOKENS[:, :2]), -1)
    return [model.generate(more, attention_mask=torch.ones_like(more), past_key_values=first.past_key_values, **GREEDY)]


def _embedded(model: Any) -> list[Tensor]:
    embeddings = model.transformer.wte(TOKENS)
    ones = torch.ones_like(TOKENS)
    generated = model.generate(inputs_embeds=embeddings, attention_mask=ones, **GREEDY)
    logits = model(inputs_embeds=embeddings).logits
    assert torch.equal(logits, model(TOKENS).logits)
    return [logits, generated]


def _everything(model: Any) -> list[Tensor]:
    found = model(TOKENS, output_hidden_states=True, output_attentions=True, labels=TOKENS)
    assert len(found.hidden_states) == 3
    assert [pattern.shape for pattern in found.attentions] == [(2, 4, 7, 7)] * 2
    return [found.loss, found.logits, *found.hidden_states, *found.attentions]


def _fixed(model: Any) -> list[Tensor]:
    past = StaticCache(config=model.config, max_cache_len=20)
    ones = torch.ones_like(TOKENS)
    return [model.generate(TOKENS, attention_mask=ones, past_key_values=past, **GREEDY)]


CALLS: dict[str, Callable[[Any], list[Tensor]]] = {
    "everything": _everything,
    "tuple": lambda model: list(model(TOKENS, use_cache=False, return_dict=False)),
    "token types": lambda model: [model(TOKENS, token_type_ids=TOKENS % 3).logits],
    "positions": lambda model: [model(TOKENS, position_ids=torch.arange(7)[None] * 2).logits],
    "some logits": lambda model: [model(TOKENS, logits_to_keep=2).logits],
    "embeddings": _embedded,
    "a token after a cache": lambda model: _continued(model, None, 1),
    "tokens after a cache with padding": lambda model: _continued(model, PADDED, 3),
    "greedy": _generate,
    "without a cache": lambda model: _generate(model, use_cache=False),
    "sampled": lambda model: _generate(model, **{**SAMPLED, "num_return_sequences": 2}),
    "beams": lambda model: _generate(model, num_beams=3, num_return_sequences=2),
    "sampled beams": lambda model: _generate(model, **{**SAMPLED, "num_beams": 2}),
    "repetition penalty": lambda model: _generate(model, repetition_penalty=1.5, no_repeat_ngram_size=2),
    "prompt lookup": lambda model: [
        model.generate(TOKENS[:1].repeat(1, 2), prompt_lookup_num_tokens=3, attention_mask=torch.ones(1, 14), **GREEDY)
    ],
    "a cache of fixed size": _fixed,
    "a generation that goes on": _from_cache,
}


@pytest.fixture(scope="module")
def sides() -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = CodeGenForCausalLM(small_config(initializer_range=0.2)).eval()
    bridge: Any = boot(copy.deepcopy(model))
    return eager(model), bridge.original_model


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_call_has_the_bits_of_hugging_face(sides: tuple[Any, Any], name: str) -> None:
    theirs, ours = (CALLS[name](side) for side in sides)
    assert len(theirs) == len(ours)
    assert all(map(torch.equal, theirs, ours))


@torch.no_grad()
def test_hidden_tokens_have_no_effect(sides: tuple[Any, Any]) -> None:
    changed = torch.where(PADDED == 1, TOKENS, 100 - TOKENS)
    assert not torch.equal(changed, TOKENS)
    found = [sides[1](tokens, attention_mask=PADDED).logits[PADDED == 1] for tokens in (TOKENS, changed)]
    assert torch.equal(*found)


@torch.no_grad()
def test_row_of_a_padded_batch_is_generated_as_alone(sides: tuple[Any, Any]) -> None:
    together = _generate(sides[1])[0][0, -5:]
    alone = sides[1].generate(TOKENS[:1, 2:], attention_mask=torch.ones(1, 5), **GREEDY)[0, -5:]
    assert torch.equal(together, alone)


def test_retained_gradients_are_those_of_hugging_face(sides: tuple[Any, Any]) -> None:
    found = []
    for side in sides:
        outputs = side(TOKENS, output_hidden_states=True, output_attentions=True)
        kept = [outputs.hidden_states[0], outputs.attentions[0]]
        for tensor in kept:
            tensor.retain_grad()
        outputs.logits.square().sum().backward()
        side.zero_grad()
        found.append([tensor.grad for tensor in kept])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-3)
    assert found[0][1].abs().max() > 0
