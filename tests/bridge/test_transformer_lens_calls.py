"""What TransformerLens's tests ask of CodeGen's adapter, of hooks behind a flag and of parallel blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sides import small_config
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import generalized_components as upstream
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter
from transformers import CodeGenForCausalLM

from cgverify.bridge import CodeGenAttentionBridge, boot, install, uninstall
from cgverify.bridge.booting import ARCHITECTURE, CodeGenAdapter

TOKENS = torch.randint(101, (2, 6), generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "normalization_type": "LN",
    "positional_embedding_type": "rotary",
    "final_rms": False,
    "gated_mlp": False,
    "attn_only": False,
    "parallel_attn_mlp": True,
}
COMPONENTS = {
    "embed": ("transformer.wte", upstream.EmbeddingBridge),
    "blocks": ("transformer.h", upstream.ParallelBlockBridge),
    "blocks.ln1": ("ln_1", upstream.NormalizationBridge),
    "blocks.attn": ("attn", upstream.JointQKVAttentionBridge),
    "blocks.attn.qkv": ("qkv_proj", upstream.LinearBridge),
    "blocks.attn.o": ("out_proj", upstream.LinearBridge),
    "blocks.mlp": ("mlp", upstream.MLPBridge),
    "blocks.mlp.in": ("fc_in", upstream.LinearBridge),
    "blocks.mlp.out": ("fc_out", upstream.LinearBridge),
    "ln_final": ("transformer.ln_f", upstream.NormalizationBridge),
    "unembed": ("lm_head", upstream.UnembeddingBridge),
}
GATED = {
    "attn.hook_result": "use_attn_result",
    "attn.hook_q_input": "use_split_qkv_input",
    "attn.hook_k_input": "use_split_qkv_input",
    "attn.hook_v_input": "use_split_qkv_input",
    "attn.hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}


@pytest.fixture
def bridge() -> Any:
    torch.manual_seed(0)
    return boot(CodeGenForCausalLM(small_config(initializer_range=0.2)).eval())


def settings() -> Any:
    return build_bridge_config_from_hf(small_config(), ARCHITECTURE, "small", torch.float32)


def test_adapter_has_settings_and_components_of_upstream() -> None:
    adapter: Any = CodeGenAdapter(settings())
    theirs: Any = CodeGenArchitectureAdapter(settings())
    assert {name: getattr(adapter.cfg, name) for name in SETTINGS} == SETTINGS
    assert adapter.weight_processing_conversions.keys() == theirs.weight_processing_conversions.keys()
    found: dict[str, Any] = {}

    def walk(components: dict[str, Any], prefix: str) -> None:
        for name, component in components.items():
            found[prefix + name] = component
            walk(component.submodules, f"{prefix}{name}.")

    walk(adapter.component_mapping, "")
    assert {name: component.name for name, component in found.items() if name in COMPONENTS} == {
        name: path for name, (path, _) in COMPONENTS.items()
    }
    assert found.keys() - COMPONENTS.keys() <= {f"blocks.attn.{which}" for which in "qkv"}
    assert all(isinstance(found[name], kind) for name, (_, kind) in COMPONENTS.items())
    assert type(found["blocks.attn"]) is CodeGenAttentionBridge


def test_factory_selects_our_adapter_while_installed() -> None:
    try:
        install()
        assert type(ArchitectureAdapterFactory.select_architecture_adapter(settings())) is CodeGenAdapter
    finally:
        uninstall()
    assert type(ArchitectureAdapterFactory.select_architecture_adapter(settings())) is CodeGenArchitectureAdapter


@pytest.mark.parametrize("name", GATED)
@torch.no_grad()
def test_hook_behind_a_flag_is_refused_while_it_is_off(bridge: Any, name: str) -> None:
    fired: list[Any] = []
    hook, flag = f"blocks.1.{name}", GATED[name]

    def read(tensor: torch.Tensor, hook: Any) -> None:
        fired.append(tensor)

    with pytest.raises(ValueError, match=flag):
        bridge.add_hook(hook, read)
    with pytest.warns(UserWarning, match="gated-off"):
        assert not bridge.run_with_cache(TOKENS, names_filter=[hook])[1].keys()
    with pytest.warns(UserWarning, match="gated-off"):
        bridge.add_hook(lambda each: each == hook, read)
    bridge(TOKENS)
    assert not fired
    getattr(bridge, f"set_{flag}")(True)
    bridge.add_hook(lambda each: each == hook, read)
    bridge(TOKENS)
    assert len(fired) == 1
    assert bridge.run_with_cache(TOKENS, names_filter=[hook])[1].keys() == {hook}


@torch.no_grad()
def test_residual_stream_is_the_sum_of_its_parts(bridge: Any) -> None:
    _, cache = bridge.run_with_cache(TOKENS)
    for layer in range(2):
        block = f"blocks.{layer}.hook_"
        parts = cache[f"{block}attn_out"] + cache[f"{block}mlp_out"] + cache[f"{block}resid_pre"]
        assert torch.equal(cache[f"{block}resid_post"], parts)
        assert f"{block}resid_mid" not in cache


@torch.no_grad()
def test_generation_with_a_cache_depends_on_the_prompt(bridge: Any) -> None:
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "stop_at_eos": False, "verbose": False}
    cached, without = (bridge.generate(TOKENS, use_past_kv_cache=used, **how) for used in (True, False))
    assert torch.equal(cached, without)
    assert not torch.equal(cached[0, 6:], cached[1, 6:])
