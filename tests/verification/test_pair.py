"""A bridge and a reference in memory: what cannot be compared is refused in one sentence before anything is run."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hugging_face import TABLE_PER_MODEL, table_owners
from torch import nn
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.codegen import modeling_codegen

import cgverify
from cgverify.bridge import boot
from cgverify.checkpoint.names import NANO
from cgverify.common.errors import PairError

AXES = {"layers": 1, "components": ["attn", "mlp", "unembed"], "cases": "default"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
Change = Callable[[CodeGenForCausalLM], object]


def load(dtype: torch.dtype = torch.float32) -> CodeGenForCausalLM:
    return CodeGenForCausalLM.from_pretrained(NANO, dtype=dtype).eval()


@pytest.fixture(scope="module")
def stock() -> CodeGenForCausalLM:
    return load()


@pytest.fixture(scope="module")
def bridge(stock: CodeGenForCausalLM) -> Any:
    return boot(copy.deepcopy(stock))


def block(model: Any) -> Any:
    return model.transformer.h[1]


def _eight_partitions(model: CodeGenForCausalLM) -> None:
    """Read the fused weight as the code that comes with CodeGen2 does."""
    if TABLE_PER_MODEL:
        for each in model.transformer.h:
            each.attn.mp_num = 8
        return
    source = inspect.getsource(modeling_codegen.CodeGenAttention.forward)
    assert "mp_num = 4" in source
    space = dict(vars(modeling_codegen))
    exec("class Eight:\n" + source.replace("mp_num = 4", "mp_num = 8"), space)
    for each in model.transformer.h:
        each.attn.forward = types.MethodType(space["Eight"].forward, each.attn)


class _OtherNorm(nn.LayerNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.001


def _other_class(module: nn.Module, cls: type[nn.Module]) -> None:
    module.__class__ = cls


def _scale(model: CodeGenForCausalLM) -> None:
    setattr(block(model).attn, "scaling" if TABLE_PER_MODEL else "scale_attn", 1.0)


def _dropout(model: CodeGenForCausalLM) -> None:
    if TABLE_PER_MODEL:
        block(model).attn.attention_dropout = 0.1
    else:
        block(model).attn.attn_dropout.p = 0.1


def _swapped(model: CodeGenForCausalLM) -> None:
    blocks = model.transformer.h
    blocks[1], blocks[2] = blocks[2], blocks[1]


def _parametrized(model: CodeGenForCausalLM) -> None:
    nn.utils.parametrizations.weight_norm(block(model).mlp.fc_in)


def _with_own_attention(model: CodeGenForCausalLM) -> None:
    ALL_ATTENTION_FUNCTIONS.register("own", lambda *_, **__: None)
    model.config._attn_implementation = "own"


def _with_own_config(model: CodeGenForCausalLM) -> None:
    owner = block(model).attn if TABLE_PER_MODEL else model.transformer
    owner.config = copy.deepcopy(model.config)


NOT_STOCK: dict[str, tuple[Change, str]] = {
    "another attention": (
        _with_own_attention,
        r"the model itself has the attention own \(.*, which is not transformers'",
    ),
    "another config": (_with_own_config, r"transformer[a-z0-9.]* has another config than the model"),
    "eight partitions": (
        _eight_partitions,
        r"h\.0\.attn has (mp_num 8 instead of 4|another method forward \(Eight\.forward\)) \(and 4 more",
    ),
    "another activation": (
        lambda model: setattr(block(model).mlp, "act", nn.GELU()),
        r"h\.1\.mlp\.act is a GELU instead of a NewGELUActivation",
    ),
    "another activation function": (
        lambda model: setattr(block(model).mlp.act, "forward", nn.functional.silu),
        r"h\.1\.mlp\.act has another method forward \(silu\)",
    ),
    "another epsilon": (
        lambda model: setattr(block(model).ln_1, "eps", 1e-3),
        r"h\.1\.ln_1 has eps 0\.001 instead of 1e-05",
    ),
    "another scale": (_scale, r"h\.1\.attn has scal\w+ 1\.0 instead of"),
    "another rotary_dim": (
        lambda model: setattr(block(model).attn, "rotary_dim", 8),
        r"h\.1\.attn has rotary_dim 8 instead of 16",
    ),
    "another rate of dropout": (_dropout, r"h\.1\.attn.* 0\.1 instead of 0\.0"),
    "dropout that stays on": (
        lambda model: setattr(block(model).mlp.dropout, "train", lambda mode=True: None),
        r"h\.1\.mlp\.dropout has another method train",
    ),
    "forward hook": (
        lambda model: block(model).attn.qkv_proj.register_forward_hook(lambda module, inputs, output: output * 2),
        r"h\.1\.attn\.qkv_proj has a torch forward hook",
    ),
    "forward pre-hook": (
        lambda model: block(model).register_forward_pre_hook(lambda module, inputs: None),
        r"h\.1 has a torch forward pre-hook",
    ),
    "full backward hook": (
        lambda model: block(model).mlp.register_full_backward_hook(lambda module, into, out: None),
        r"h\.1\.mlp has a torch backward hook",
    ),
    "full backward pre-hook": (
        lambda model: model.lm_head.register_full_backward_pre_hook(lambda module, out: None),
        "lm_head has a torch backward pre-hook",
    ),
    "hook on a gradient": (
        lambda model: block(model).mlp.fc_in.weight.register_hook(lambda gradient: gradient * 2),
        r"h\.1\.mlp\.fc_in has a torch hook on the gradient of its weight",
    ),
    "another forward of the whole model": (
        lambda model: setattr(model, "forward", lambda *args, **kwargs: None),
        "the model itself has another method forward",
    ),
    "another class": (
        lambda model: _other_class(block(model).ln_1, _OtherNorm),
        r"h\.1\.ln_1 is a _OtherNorm instead of a LayerNorm",
    ),
    "another class of the same name": (
        lambda model: _other_class(model, type("CodeGenForCausalLM", (CodeGenForCausalLM,), {})),
        "the model itself is a [a-z_.]+CodeGenForCausalLM instead of a transformers.+CodeGenForCausalLM",
    ),
    "parametrized": (_parametrized, r"h\.1\.mlp\.fc_in is a ParametrizedLinear instead of a Linear"),
    "swapped blocks": (_swapped, r"h\.1\.attn has layer_idx 2 instead of 1"),
    "an additional module": (
        lambda model: block(model).add_module("adapter", nn.Linear(2, 2)),
        r"h\.1 has an additional adapter",
    ),
    "a missing block": (lambda model: model.transformer.h.__delitem__(4), r"transformer\.h lacks 4"),
    "an additional bias": (
        lambda model: setattr(block(model).attn.out_proj, "bias", nn.Parameter(torch.ones(192))),
        r"h\.1\.attn\.out_proj has a bias",
    ),
    "compiled": (lambda model: block(model).mlp.compile(), r"h\.1\.mlp is compiled"),
    "edited config": (
        lambda model: setattr(model.config, "layer_norm_epsilon", 1e-6),
        r"h\.0\.ln_1 has eps 1e-05 instead of 1e-06",
    ),
}


@pytest.mark.parametrize("change", NOT_STOCK)
def test_reference_that_its_class_would_not_build_is_refused(
    stock: CodeGenForCausalLM, bridge: Any, change: str
) -> None:
    reference = copy.deepcopy(stock)
    apply, clause = NOT_STOCK[change]
    apply(reference)
    with pytest.raises(PairError, match=f"^The reference is not what Hugging Face's class .*{clause}") as refused:
        cgverify.verify(bridge, reference, **AXES)
    assert refused.value.exit_code == 2
    assert str(refused.value).endswith("load the reference again with from_pretrained.")


def test_global_hook_is_refused(stock: CodeGenForCausalLM, bridge: Any) -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        with pytest.raises(PairError, match="torch has a global forward hook"):
            cgverify.verify(bridge, stock, **AXES)
    finally:
        handle.remove()


def test_config_that_is_not_known_is_refused(config: CodeGenConfig) -> None:
    config.activation_function = "relu"
    model = CodeGenForCausalLM(config)
    with pytest.raises(PairError, match="The reference has the activation relu"):
        cgverify.verify(boot(copy.deepcopy(model)), model)


def test_config_that_its_class_refuses_is_refused(stock: CodeGenForCausalLM, bridge: Any) -> None:
    reference = copy.deepcopy(stock)
    reference.config.resid_pdrop = 7.0
    with pytest.raises(PairError, match=r"The reference has resid_pdrop 7\.0"):
        cgverify.verify(bridge, reference)


def _edit(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor[3] += 0.01


def _give_weights_twice(model: CodeGenForCausalLM) -> None:
    block(model).attn.qkv_proj.weight = model.transformer.h[0].attn.qkv_proj.weight


def _table(model: CodeGenForCausalLM, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for owner in table_owners(model):
        owner.embed_positions = change(owner.embed_positions)


NOT_THE_SAME: dict[str, tuple[Change, str]] = {
    "edited weight": (
        lambda model: _edit(block(model).mlp.fc_in.weight),
        r"h\.1\.mlp\.fc_in\.weight of the reference differs from that of the bridge in 192 of 147456 values, .*0\.01",
    ),
    "edited fused weight": (lambda model: _edit(block(model).attn.qkv_proj.weight), r"h\.1\.attn\.qkv_proj\.weight of"),
    "edited bias": (lambda model: _edit(model.lm_head.bias), r"lm_head\.bias of the reference differs"),
    "edited gain": (lambda model: _edit(model.transformer.ln_f.weight), r"transformer\.ln_f\.weight of the reference"),
    "one layer's weights twice": (_give_weights_twice, r"h\.1\.attn\.qkv_proj\.weight of the reference differs"),
    "another dtype": (
        lambda model: block(model).mlp.to(torch.bfloat16),
        r"fc_in\.weight of the reference has dtype bfloat16, and that of the bridge float32",
    ),
    "table in 16 bits": (
        lambda model: _table(model, torch.Tensor.half),
        "embed_positions of the reference has dtype float16, and that of the bridge float32",
    ),
    "rounded table": (
        lambda model: _table(model, lambda table: table.half().float()),
        "embed_positions of the reference differs from that of the bridge",
    ),
    "shifted table": (
        lambda model: _table(model, lambda table: table.roll(1, 0)),
        "embed_positions of the reference differs from that of the bridge",
    ),
}


@pytest.mark.parametrize("change", NOT_THE_SAME)
def test_reference_of_another_model_is_refused(stock: CodeGenForCausalLM, bridge: Any, change: str) -> None:
    reference = copy.deepcopy(stock)
    apply, clause = NOT_THE_SAME[change]
    apply(reference)
    with pytest.raises(PairError, match=f"^Bridge and reference are not of one model: .*{clause}.*deepcopy"):
        cgverify.verify(bridge, reference, **AXES)


def test_other_config_is_refused(config: CodeGenConfig, model: CodeGenForCausalLM) -> None:
    other_config = copy.deepcopy(config)
    other_config.rotary_dim = 4
    other = CodeGenForCausalLM(other_config)
    with pytest.raises(PairError, match="rotary_dim is 4 in the reference and 8 in the bridge"):
        cgverify.verify(boot(copy.deepcopy(model)), other)


AROUND_COMPONENTS: dict[str, tuple[Change, str]] = {
    "forward": (
        lambda model: setattr(model.transformer, "forward", lambda *args, **kwargs: None),
        "transformer has another method forward",
    ),
    "torch hook": (
        lambda model: model.register_forward_hook(lambda module, args, output: None),
        "the model itself has a torch forward hook",
    ),
    "dropout": (
        lambda model: setattr(model.transformer.drop, "p", 0.5),
        r"transformer\.drop has p 0\.5 instead of 0\.0",
    ),
    "missing block": (lambda model: model.transformer.h.__delitem__(4), r"transformer\.h lacks 4"),
}


@pytest.mark.parametrize("change", AROUND_COMPONENTS)
def test_change_around_the_components_of_a_bridge_is_refused(stock: CodeGenForCausalLM, change: str) -> None:
    """These modules are not run, so that what they compute could not be found."""
    bridge = boot(copy.deepcopy(stock))
    apply, clause = AROUND_COMPONENTS[change]
    apply(bridge.original_model)
    with pytest.raises(PairError, match=f"^The model around the bridge's components is not .*{clause}.*deepcopy of"):
        cgverify.verify(bridge, stock, **AXES)


def _half(module: nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
    return logits / 2


def _fails(*args: Any, **kwargs: Any) -> None:
    raise TypeError("no such argument")


BRIDGES_OWN: dict[str, tuple[Callable[[Any], object], str]] = {
    "method": (
        lambda bridge: setattr(bridge, "forward", lambda *args: type(bridge).forward(bridge, *args) + 1),
        "does not return the logits",
    ),
    "class": (
        lambda bridge: _other_class(
            bridge, type("Own", (type(bridge),), {"forward": lambda *_: torch.zeros(1, 1, 256)})
        ),
        "does not return the logits",
    ),
    "torch hook": (lambda bridge: bridge.register_forward_hook(_half), "does not return the logits"),
    "nothing": (lambda bridge: setattr(bridge, "forward", lambda *_: None), "does not return the logits"),
    "other tokens": (
        lambda bridge: setattr(bridge, "forward", lambda ids: type(bridge).forward(bridge, ids + 1)),
        "does not return the logits",
    ),
    "several tokens": (
        lambda bridge: setattr(bridge, "forward", lambda ids: type(bridge).forward(bridge, ids[:1, :1])),
        "does not return the logits",
    ),
    "exception": (lambda bridge: setattr(bridge, "forward", _fails), "raises TypeError: no such argument"),
}


@pytest.mark.parametrize("change", BRIDGES_OWN)
def test_bridge_that_changes_its_models_logits_is_refused(stock: CodeGenForCausalLM, change: str) -> None:
    """The cells run the components of a bridge and not the bridge itself."""
    bridge = boot(copy.deepcopy(stock))
    apply, clause = BRIDGES_OWN[change]
    apply(bridge)
    with pytest.raises(PairError, match=f"^The bridge's own forward {clause}"):
        cgverify.verify(bridge, stock, **AXES)


def test_raising_component_of_a_bridge_is_a_finding(stock: CodeGenForCausalLM) -> None:
    bridge = boot(copy.deepcopy(stock))
    bridge.blocks[1].mlp.forward = _fails
    result = cgverify.verify(bridge, stock, **AXES)
    assert "the candidate raised where the reference did not: TypeError: no such argument" in set(
        result.findings["message"]
    )


def test_bridge_over_another_architecture_is_refused(stock: CodeGenForCausalLM) -> None:
    other = nn.Module()
    other.blocks = nn.ModuleList()
    with pytest.raises(PairError, match="The bridge wraps a NoneType"):
        cgverify.verify(other, stock)
    other.original_model = nn.Linear(2, 2)
    with pytest.raises(PairError, match="The bridge wraps a Linear"):
        cgverify.verify(other, stock)


def test_edited_weight_of_the_bridge_is_refused(stock: CodeGenForCausalLM) -> None:
    """Which of the two was edited cannot be known, except of q, k and v, which the bridge has twice."""
    bridge = boot(copy.deepcopy(stock))
    _edit(bridge.blocks[1].attn.o.weight)
    with pytest.raises(PairError, match=r"h\.1\.attn\.out_proj\.weight of the reference differs"):
        cgverify.verify(bridge, stock, **AXES)


def test_edited_fused_weight_is_refused_if_the_bridge_dropped_its_own(stock: CodeGenForCausalLM) -> None:
    bridge = boot(copy.deepcopy(stock), keep_fused=False)
    cgverify.verify(bridge, stock, **AXES).assert_ok()
    reference = copy.deepcopy(stock)
    _edit(block(reference).attn.qkv_proj.weight)
    with pytest.raises(PairError, match=r"h\.1\.attn\.qkv_proj\.weight of the reference differs"):
        cgverify.verify(bridge, reference, **AXES)


def test_edited_fused_weight_is_refused_in_compatibility_mode(stock: CodeGenForCausalLM) -> None:
    bridge = boot(copy.deepcopy(stock))
    bridge.enable_compatibility_mode(disable_warnings=True)
    cgverify.verify(bridge, stock, **AXES).assert_ok()
    reference = copy.deepcopy(stock)
    _edit(block(reference).attn.qkv_proj.weight)
    with pytest.raises(PairError, match=r"h\.1\.attn\.qkv_proj\.weight of the reference differs"):
        cgverify.verify(bridge, reference, **AXES)


def test_bridge_with_hooks_and_other_modules_is_run(stock: CodeGenForCausalLM) -> None:
    """What is on the bridge's own modules is the bridge's own: it is judged, and not refused."""
    bridge = boot(copy.deepcopy(stock))
    bridge.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: None)
    bridge.blocks[1].mlp.hook_out.add_hook(lambda tensor, hook: None, is_permanent=True)
    cgverify.verify(bridge, stock, **AXES).assert_ok()
    bridge.blocks[1].mlp.original_component.act = nn.GELU()
    with pytest.raises(AssertionError, match="activation breaks first"):
        cgverify.verify(bridge, stock, **AXES).assert_ok()


@pytest.mark.parametrize("dtype", DTYPES)
def test_stock_pair_passes_in_every_dtype(dtype: torch.dtype) -> None:
    reference = load(dtype)
    cgverify.verify(boot(copy.deepcopy(reference)), reference, **AXES).assert_ok()
    cast = load().to(dtype)  # the sin/cos table is cast too
    cgverify.verify(boot(copy.deepcopy(cast)), cast, **AXES).assert_ok()


def _used(model: CodeGenForCausalLM) -> None:
    """Run a model as people do before they verify it: transformers may leave hooks on it that collect outputs."""
    model(torch.arange(4)[None], output_attentions=True, output_hidden_states=True, use_cache=True)


STATES: dict[str, Change] = {
    "training": lambda model: model.train(),
    "used": _used,
    "eager": lambda model: model.set_attn_implementation("eager"),
    "frozen": lambda model: model.requires_grad_(False),
    "copied": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict())),
}


@pytest.mark.parametrize("state", STATES)
def test_stock_pair_passes_in_any_state(stock: CodeGenForCausalLM, bridge: Any, state: str) -> None:
    reference = copy.deepcopy(stock)
    STATES[state](reference)
    cgverify.verify(bridge, reference, **AXES).assert_ok()
    cgverify.verify(boot(copy.deepcopy(reference)), reference, **AXES).assert_ok()


@pytest.mark.parametrize("mode", ["plain", "compatibility"])
def test_tied_pair_with_dropout_passes(config: CodeGenConfig, mode: str) -> None:
    config.tie_word_embeddings, config.attn_pdrop, config.resid_pdrop = True, 0.1, 0.2
    model = CodeGenForCausalLM(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    bridge = boot(copy.deepcopy(model))
    if mode == "compatibility":
        bridge.enable_compatibility_mode(disable_warnings=True)
    cgverify.verify(bridge, model, **AXES).assert_ok()
