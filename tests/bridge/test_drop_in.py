"""What users of TransformerLens's class rely on, and the errors of wrong calls."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from hugging_face import TABLE_PER_MODEL, without_embeddings
from sides import both, tokenizer
from torch import nn
from transformer_lens.conversion_utils.conversion_steps.base_tensor_conversion import BaseTensorConversion
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components import CodeGenAttentionBridge as Upstream
from transformer_lens.model_bridge.generalized_components import JointQKVAttentionBridge, LinearBridge
from transformers import CodeGenForCausalLM, DynamicCache
from transformers.models.codegen.modeling_codegen import CodeGenAttention, create_sinusoidal_positions

from cgverify.bridge import CodeGenAttentionBridge, boot, install, split_qkv_matrix, uninstall
from cgverify.bridge.booting import ARCHITECTURE, CodeGenAdapter


def test_constructor_and_public_methods_equal_upstream() -> None:
    ours, theirs = (inspect.signature(each.__init__) for each in (CodeGenAttentionBridge, Upstream))
    assert list(ours.parameters) == list(theirs.parameters)
    assert {n: p.default for n, p in ours.parameters.items()} == {n: p.default for n, p in theirs.parameters.items()}
    ours, theirs = (inspect.signature(each.get_random_inputs) for each in (CodeGenAttentionBridge, Upstream))
    assert {n: p.default for n, p in ours.parameters.items()} == {n: p.default for n, p in theirs.parameters.items()}
    public = {name for name in dir(Upstream) if not name.startswith("_")}
    assert public <= set(dir(CodeGenAttentionBridge))
    assert issubclass(CodeGenAttentionBridge, JointQKVAttentionBridge)


def test_arguments_have_the_order_of_hugging_face() -> None:
    theirs = list(inspect.signature(CodeGenAttention.forward).parameters)
    ours = list(inspect.signature(CodeGenAttentionBridge.forward).parameters)
    if TABLE_PER_MODEL:  # the second argument may be a cache or embeddings: its type decides
        assert theirs[1:4] == ["hidden_states", "position_embeddings", "attention_mask"]
        assert ours[1:4] == ["hidden_states", "layer_past", "attention_mask"]
    else:
        assert ours[: len(theirs)] == theirs


@torch.no_grad()
def test_cache_is_accepted_in_the_fourth_place(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    given = without_embeddings(ours.get_random_inputs())
    hidden, mask, cache = given["hidden_states"], given["attention_mask"], DynamicCache()
    embeddings = ours._table()[given["position_ids"]].chunk(2, dim=-1)
    torch.testing.assert_close(ours(hidden, embeddings, mask, cache)[0], ours(**given)[0])
    assert cache.layers[-1].get_seq_length() == hidden.shape[1]


@torch.no_grad()
def test_positions_and_their_embeddings_give_the_same_bits(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    given = without_embeddings(ours.get_random_inputs())
    embeddings = ours._table()[given["position_ids"]].chunk(2, dim=-1)
    hidden, context = given["hidden_states"], {"attention_mask": given["attention_mask"]}
    expected = ours(**given)
    for found in (ours(hidden, embeddings, **context), ours(hidden, position_embeddings=embeddings, **context)):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    with pytest.raises(ValueError, match="position_embeddings must be a sine and a cosine"):
        ours(hidden, position_embeddings=[half[:, :5] for half in embeddings])


def test_unknown_keyword_raises_if_hugging_face_raises(model: CodeGenForCausalLM) -> None:
    theirs, ours = both(model)
    assert (
        any(p.kind is p.VAR_KEYWORD for p in inspect.signature(type(theirs).forward).parameters.values())
        == TABLE_PER_MODEL
    )
    if not TABLE_PER_MODEL:
        with pytest.raises(TypeError, match="unexpected keyword argument 'scaling'"):
            ours(**ours.get_random_inputs(), scaling=2.0)


def test_unknown_form_of_attention_raises(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    attention = bridge.blocks[0].attn
    with pytest.raises(ValueError, match="not one that CodeGenAttentionBridge knows"):
        attention.set_original_component(nn.Linear(2, 2))


class StandIn(nn.Module):
    """The minimum that upstream's class can wrap: without dropout, head_dim and num_attention_heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj, self.out_proj = nn.Linear(64, 192, bias=False), nn.Linear(64, 64, bias=False)
        self.embed_positions = create_sinusoidal_positions(512, 8)
        self.rotary_dim, self.scale_attn, self.layer_idx = 8, 4.0, 0


def stand_in(mocked: bool) -> Any:
    """Return a minimal module, or a mock of one without hooks. TransformerLens's unit tests wrap both."""
    if not mocked:
        return StandIn()
    module, mock = StandIn(), MagicMock(spec=nn.Module)
    for name in ("qkv_proj", "out_proj", "embed_positions", "rotary_dim", "scale_attn", "layer_idx"):
        setattr(mock, name, getattr(module, name))
    return mock


@pytest.mark.parametrize("mocked", [False, True])
@torch.no_grad()
def test_minimal_module_of_upstream_can_be_wrapped(mocked: bool) -> None:
    config = SimpleNamespace(n_heads=4, d_model=64, d_head=16, rotary_dim=8, positional_embedding_type="rotary")
    linears = tuple(nn.Linear(64, 64, bias=False) for _ in range(3))
    sides = []
    original = stand_in(mocked)
    for cls in (CodeGenAttentionBridge, Upstream):
        bridge: Any = cls("attn", config, lambda _: linears, submodules={"o": LinearBridge(name="out_proj")})
        bridge.set_original_component(original)
        assert bridge.o.original_component is original.out_proj
        sides.append(bridge)
    hidden, positions = torch.randn(1, 6, 64), torch.arange(6)[None]
    for ours, theirs in zip(*(side(hidden, position_ids=positions) for side in sides), strict=True):
        torch.testing.assert_close(ours, theirs)


class Halved(CodeGenAttentionBridge):
    """Override what upstream's subclasses override."""

    def _reconstruct_attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> Any:
        output, pattern = super()._reconstruct_attention(q, k, v / 2, **kwargs)
        return output, pattern


@torch.no_grad()
def test_subclass_of_reconstruct_attention_is_used(model: CodeGenForCausalLM) -> None:
    _, plain = both(model)
    _, halved = both(model, attention=Halved)
    given = plain.get_random_inputs()
    torch.testing.assert_close(halved(**given)[0], plain(**given)[0] / 2)


class Uniform(CodeGenAttentionBridge):
    def _masked_softmax(self, attn_scores: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full_like(attn_scores, 1 / attn_scores.shape[-1])


@torch.no_grad()
def test_subclass_of_softmax_is_used_with_and_without_hooks(model: CodeGenForCausalLM) -> None:
    _, uniform = both(model, attention=Uniform)
    given = uniform.get_random_inputs(2, 8)
    assert (uniform(**given)[1] == 1 / 8).all()
    uniform.hook_attn_scores.add_hook(lambda tensor, hook: None)
    assert (uniform(**given)[1] == 1 / 8).all()


def test_install_boots_ours_until_uninstall(model: CodeGenForCausalLM, tmp_path: Path) -> None:
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
    if not TABLE_PER_MODEL:  # TransformerLens 4.3 cannot boot the other form
        assert attention() is Upstream


def test_uninstall_restores_the_replaced_adapter_only() -> None:
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


class Doubled(BaseTensorConversion):
    """Show hooks twice the tensor."""

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
def test_given_conversion_rule_is_applied(model: CodeGenForCausalLM, rule: str, hook: str) -> None:
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


def test_missing_split_names_ours(model: CodeGenForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"cgverify\.bridge\.split_qkv_matrix"):
        CodeGenAttentionBridge("attn", boot(model).cfg)


def test_random_inputs_have_the_defaults_of_the_contract(model: CodeGenForCausalLM) -> None:
    given = boot(model).blocks[0].attn.get_random_inputs()
    derived = ["position_embeddings"] if TABLE_PER_MODEL else []
    assert list(given) == ["hidden_states", "position_ids", "attention_mask", *derived]
    assert given["hidden_states"].shape == (2, 8, 64)
    assert given["hidden_states"].dtype == torch.float32
    assert given["position_ids"].tolist() == [list(range(8))] * 2
    assert given["attention_mask"].shape == (2, 1, 8, 8)
    assert given["attention_mask"][0, 0, 0, 1] == torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_wrong_call_raises_before_any_arithmetic(
    model: CodeGenForCausalLM, changes: dict[str, Any], message: str
) -> None:
    _, ours = both(model)
    fired: list[Any] = []
    ours.hook_in.add_hook(lambda tensor, hook: fired.append(hook))
    cache = DynamicCache()
    with pytest.raises(ValueError, match=message):
        ours(**{**without_embeddings(ours.get_random_inputs()), **changes}, layer_past=cache)
    assert not fired
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("token", [True, 1])
@torch.no_grad()
def test_2d_mask_hides_padding_and_is_causal(model: CodeGenForCausalLM, token: Any) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(2, 6)
    mask = torch.full((2, 6), token)
    mask[1, :2] = 0
    four_dimensional = given["attention_mask"].clone()
    four_dimensional[1, :, :, :2] = torch.finfo(torch.float32).min
    expected = theirs(**{**given, "attention_mask": four_dimensional})
    assert torch.equal(ours(**{**given, "attention_mask": mask})[0], expected[0])


@torch.no_grad()
def test_boolean_4d_mask_is_true_where_a_query_may_attend(model: CodeGenForCausalLM) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs(2, 6)
    may_attend = given["attention_mask"] == 0
    assert torch.equal(ours(**{**given, "attention_mask": may_attend})[0], theirs(**given)[0])


@torch.no_grad()
def test_forward_reads_no_values_of_another_device(model: CodeGenForCausalLM) -> None:
    """The meta device has no values: reading one raises there, and would wait for the device on a GPU."""
    _, ours = both(model)
    given = {name: tensor.to("meta") for name, tensor in without_embeddings(ours.get_random_inputs()).items()}
    on_meta = ours.to("meta")
    table = getattr(on_meta.original_component, "rotary_emb", on_meta.original_component)
    table.embed_positions = table.embed_positions.to("meta")
    output, pattern = on_meta(**given)
    assert output.shape == (2, 8, 64)
    assert pattern.shape == (2, 4, 8, 8)
