"""What a user of TransformerLens's class relies on, and what is told where the call is wrong."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sides import both, tokenizer
from torch import nn
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import CodeGenAttentionBridge as Upstream
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge, LinearBridge
from transformers import CodeGenForCausalLM, DynamicCache
from transformers.models.codegen.modeling_codegen import CodeGenAttention, create_sinusoidal_positions

from cgverify.bridge import CodeGenAttentionBridge, install, uninstall
from cgverify.bridge.adapter import CodeGenAdapter
from cgverify.bridge.loading import ARCHITECTURE


def test_constructor_and_public_methods_are_upstreams() -> None:
    ours, theirs = (inspect.signature(each.__init__) for each in (CodeGenAttentionBridge, Upstream))
    assert list(ours.parameters) == list(theirs.parameters)
    assert {n: p.default for n, p in ours.parameters.items()} == {n: p.default for n, p in theirs.parameters.items()}
    ours, theirs = (inspect.signature(each.get_random_inputs) for each in (CodeGenAttentionBridge, Upstream))
    assert {n: p.default for n, p in ours.parameters.items()} == {n: p.default for n, p in theirs.parameters.items()}
    public = {name for name in dir(Upstream) if not name.startswith("_")}
    assert public <= set(dir(CodeGenAttentionBridge))
    assert issubclass(CodeGenAttentionBridge, JointQKVAttentionBridge)


def test_arguments_stand_in_hugging_faces_order() -> None:
    theirs = list(inspect.signature(CodeGenAttention.forward).parameters)
    assert list(inspect.signature(CodeGenAttentionBridge.forward).parameters)[: len(theirs)] == theirs


class StandIn(nn.Module):
    """The least that upstream's class asks of the module it wraps: no dropout, no head_dim, no num_attention_heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj, self.out_proj = nn.Linear(64, 192, bias=False), nn.Linear(64, 64, bias=False)
        self.embed_positions = create_sinusoidal_positions(512, 8)
        self.rotary_dim, self.scale_attn, self.layer_idx = 8, 4.0, 0


@torch.no_grad()
def test_a_module_that_upstream_can_wrap_can_be_wrapped() -> None:
    config = SimpleNamespace(n_heads=4, d_model=64, d_head=16, rotary_dim=8, positional_embedding_type="rotary")
    linears = tuple(nn.Linear(64, 64, bias=False) for _ in range(3))
    sides = []
    original = StandIn()
    for cls in (CodeGenAttentionBridge, Upstream):
        bridge: Any = cls("attn", config, lambda _: linears, submodules={"o": LinearBridge(name="out_proj")})
        bridge.set_original_component(original)
        assert bridge.o.original_component is original.out_proj
        sides.append(bridge)
    hidden, positions = torch.randn(1, 6, 64), torch.arange(6)[None]
    for ours, theirs in zip(*(side(hidden, position_ids=positions) for side in sides), strict=True):
        torch.testing.assert_close(ours, theirs)


class Halved(CodeGenAttentionBridge):
    """A subclass that changes what upstream's subclasses change."""

    def _reconstruct_attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> Any:
        output, pattern = super()._reconstruct_attention(q, k, v / 2, **kwargs)
        return output, pattern


@torch.no_grad()
def test_a_subclass_steps_in_where_it_does_upstream(model: CodeGenForCausalLM) -> None:
    _, plain = both(model)
    _, halved = both(model, attention=Halved)
    given = plain.get_random_inputs()
    torch.testing.assert_close(halved(**given)[0], plain(**given)[0] / 2)


class Uniform(CodeGenAttentionBridge):
    def _masked_softmax(self, attn_scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full_like(attn_scores, 1 / attn_scores.shape[-1])


@torch.no_grad()
def test_a_subclass_with_another_softmax_has_it_with_and_without_hooks(model: CodeGenForCausalLM) -> None:
    _, uniform = both(model, attention=Uniform)
    given = uniform.get_random_inputs(2, 8)
    assert (uniform(**given)[1] == 1 / 8).all()
    uniform.hook_attn_scores.add_hook(lambda tensor, hook: None)
    assert (uniform(**given)[1] == 1 / 8).all()


def test_install_makes_transformer_lens_boot_ours_and_uninstall_undoes_it(
    model: CodeGenForCausalLM, tmp_path: Path
) -> None:
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)

    def attention() -> type:
        bridge: Any = TransformerBridge.boot_transformers(str(tmp_path), dtype=torch.float32)
        return type(bridge.blocks[0].attn)

    try:
        install()
        install()
        assert attention() is CodeGenAttentionBridge
    finally:
        uninstall()
    assert attention() is Upstream


def test_uninstall_puts_back_the_adapter_that_was_there_and_leaves_one_that_came_later() -> None:
    registered = ArchitectureAdapterFactory._adapters
    theirs = registered[ARCHITECTURE]
    earlier, later = (type(name, (CodeGenAdapter,), {}) for name in ("Earlier", "Later"))
    try:
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, earlier)
        uninstall()
        assert registered[ARCHITECTURE] is earlier
        install()
        install()
        assert registered[ARCHITECTURE] is CodeGenAdapter
        uninstall()
        assert registered[ARCHITECTURE] is earlier
        install()
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, later)
        uninstall()
        assert registered[ARCHITECTURE] is later
    finally:
        ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, theirs)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"position_ids": None}, "position_ids, integers of shape"),
        ({"position_ids": torch.zeros(2, 7, dtype=torch.long)}, r"position_ids must be \[batch or 1, seq\]"),
        ({"position_ids": torch.zeros(3, 8, dtype=torch.long)}, r"position_ids must be \[batch or 1, seq\]"),
        ({"position_ids": torch.full((2, 8), 64)}, "rows for 0 to 63"),
        ({"position_ids": torch.full((2, 8), -1)}, "are between -1 and -1"),
        ({"attention_mask": torch.zeros(2, 1, 8, 9)}, "attention_mask must be"),
        ({"attention_mask": torch.zeros(2, 8, 8)}, "attention_mask must be"),
        ({"attention_mask": torch.zeros(2, 3, 8, 8)}, "attention_mask must be .* heads 4,"),
        ({"attention_mask": torch.ones(2, 9)}, r"2D attention_mask must be \[batch, keys\]"),
    ],
)
def test_a_wrong_call_is_told_before_any_arithmetic(
    model: CodeGenForCausalLM, changes: dict[str, Any], told: str
) -> None:
    _, ours = both(model)
    fired: list[Any] = []
    ours.hook_in.add_hook(lambda tensor, hook: fired.append(hook))
    cache = DynamicCache()
    with pytest.raises(ValueError, match=told):
        ours(**{**ours.get_random_inputs(), **changes}, layer_past=cache)
    assert not fired
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("token", [True, 1])
@torch.no_grad()
def test_a_2d_mask_hides_padding_on_top_of_causal(model: CodeGenForCausalLM, token: Any) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(2, 6)
    mask = torch.full((2, 6), token)
    mask[1, :2] = 0
    four_dimensional = given["attention_mask"].clone()
    four_dimensional[1, :, :, :2] = torch.finfo(torch.float32).min
    expected = theirs(**{**given, "attention_mask": four_dimensional})
    assert torch.equal(ours(**{**given, "attention_mask": mask})[0], expected[0])


@torch.no_grad()
def test_a_boolean_4d_mask_says_who_may_attend(model: CodeGenForCausalLM) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(2, 6)
    may_attend = given["attention_mask"] == 0
    assert torch.equal(ours(**{**given, "attention_mask": may_attend})[0], theirs(**given)[0])


@torch.no_grad()
def test_the_forward_asks_no_other_device_for_values(model: CodeGenForCausalLM) -> None:
    """On the meta device there are no values: a forward that looked at one would raise, as it would wait on a GPU."""
    _, ours = both(model)
    on_meta = ours.to("meta")
    on_meta.original_component.embed_positions = on_meta.original_component.embed_positions.to("meta")
    given = {name: tensor.to("meta") for name, tensor in both(model)[1].get_random_inputs().items()}
    output, pattern = on_meta(**given)
    assert output.shape == (2, 8, 64)
    assert pattern.shape == (2, 4, 8, 8)
