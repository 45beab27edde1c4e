"""Projections that are more than a Linear: adapters, quantized Linears, parametrizations, and torch's own hooks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hugging_face import eager
from sides import small_config
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot, join_features, save_pretrained, split_features

TOKENS = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(0))
PATHS = ("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out")


class Adapter(nn.Module):
    """A low-rank adapter as users write it."""

    def __init__(self, base: Any, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.b(self.a(x))  # type: ignore[no-any-return]


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adapted(linear: nn.Linear) -> nn.Module:
    return Adapter(linear).requires_grad_()


def parametrized(linear: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(linear, "weight", Halved())


def of_a_subclass(linear: nn.Linear) -> nn.Module:
    linear.__class__ = Scaled
    return linear


def quantized(linear: nn.Linear) -> nn.Module:
    wrapped = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear), {nn.Linear}, dtype=torch.qint8)
    return wrapped[0]  # type: ignore[no-any-return]


WRAPPERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "adapter": adapted,
    "parametrization": parametrized,
    "subclass": of_a_subclass,
    "quantized": quantized,
}


def wrapped(model: CodeGenForCausalLM, paths: tuple[str, ...], wrap: Callable[[nn.Linear], nn.Module]) -> Any:
    """A copy of a model with the projections at these paths wrapped in every block."""
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    for block in model.transformer.h:
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent), name, wrap(block.get_submodule(path)))
    return eager(model).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_wrapped_projection_takes_part(model: CodeGenForCausalLM, kind: str, path: str, dtype: torch.dtype) -> None:
    if kind == "quantized" and dtype != torch.float32:
        pytest.skip("the dynamic int8 Linear computes in float32")
    theirs = wrapped(model, (path,), WRAPPERS[kind]).to(dtype)
    bridge = boot(copy.deepcopy(theirs))
    expected = theirs(TOKENS).logits
    assert not torch.equal(expected, eager(model.to(dtype))(TOKENS).logits)
    assert torch.equal(bridge(TOKENS), expected)
    hooked, cache = bridge.run_with_cache(TOKENS)
    assert torch.equal(hooked, expected)
    if path == "attn.qkv_proj":
        attention = theirs.transformer.h[0].attn
        parts = split_features(attention.qkv_proj(cache["blocks.0.attn.hook_in"]))
        for which, part in zip("qkv", parts, strict=True):
            assert torch.equal(cache[f"blocks.0.attn.hook_{which}"].flatten(-2), part)
    with torch.inference_mode():
        assert torch.equal(bridge(TOKENS), expected)
    steps = bridge.generate(TOKENS, 3, False, do_sample=False, verbose=False)
    assert steps.shape == (2, 12)


@pytest.mark.parametrize("inference", [False, True])
@torch.no_grad()
def test_hooks_of_a_whole_projection_are_used(model: CodeGenForCausalLM, inference: bool) -> None:
    """An input that a hook changes for q alone changes q alone."""
    theirs = wrapped(model, ("attn.qkv_proj",), adapted)
    attention = boot(copy.deepcopy(theirs)).blocks[0].attn
    given = attention.get_random_inputs(2, 5)
    runs: list[int] = []
    attention.qkv.original_component.register_forward_hook(lambda *_: runs.append(1))
    seen: dict[str, Tensor] = {}
    for point in (attention.q.hook_out, attention.k.hook_out, attention.v.hook_out, attention.qkv.hook_out):
        point.add_hook(lambda tensor, hook: seen.update({hook.name + str(len(seen)): tensor}))
    with torch.inference_mode(inference):
        attention(**given)
        assert len(runs) == 1
        attention.q.hook_in.add_hook(lambda tensor, hook: tensor * 2)
        seen.clear()
        attention(**given)
        fused = theirs.transformer.h[0].attn.qkv_proj
        _, key, value = split_features(fused(given["hidden_states"]))
        query, _, _ = split_features(fused(given["hidden_states"] * 2))
    assert len(runs) == 3
    expected = (join_features(query, key, value), query, key, value)
    for found, tensor in zip(seen.values(), expected, strict=True):
        assert torch.equal(found.flatten(2), tensor)


def lora(model: CodeGenForCausalLM, **options: Any) -> Any:
    """A model with LoRA on all four projections, which is not zero."""
    torch.manual_seed(2)
    names = [path.rpartition(".")[2] for path in PATHS]
    config = peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False, **options)
    return eager(peft.get_peft_model(copy.deepcopy(model), config).get_base_model())


@pytest.mark.parametrize("merge", [False, True])
@torch.no_grad()
def test_peft_adapter_is_used_merged_and_unmerged(model: CodeGenForCausalLM, merge: bool) -> None:
    theirs = lora(model).eval()
    bridge = boot(copy.deepcopy(theirs))
    if merge:  # after boot, in both
        for side in (theirs, bridge.original_model):
            for module in side.modules():
                if isinstance(module, peft.tuners.lora.Linear):
                    module.merge()
    expected = theirs(TOKENS).logits
    assert not torch.allclose(expected, eager(model)(TOKENS).logits)
    assert torch.equal(bridge(TOKENS), expected)
    assert torch.equal(bridge.run_with_cache(TOKENS)[0], expected)


@torch.no_grad()
def test_peft_adapter_merged_away_leaves_plain_linears(model: CodeGenForCausalLM, tmp_path: Path) -> None:
    torch.manual_seed(2)
    config = peft.LoraConfig(r=4, target_modules=["qkv_proj", "fc_in"], init_lora_weights=False)
    merged = eager(peft.get_peft_model(copy.deepcopy(model), config).merge_and_unload()).eval()
    expected = merged(TOKENS).logits
    bridge = boot(merged)
    assert type(bridge.blocks[0].attn.q.original_component) is nn.Linear
    assert torch.equal(bridge(TOKENS), expected)
    save_pretrained(bridge, tmp_path)
    assert torch.equal(boot(tmp_path)(TOKENS), expected)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_peft_training_has_the_losses_of_hugging_face(dropout: float) -> None:
    torch.manual_seed(0)
    model = CodeGenForCausalLM(small_config(initializer_range=0.1))
    theirs = lora(model, lora_dropout=dropout).train()
    bridge = boot(copy.deepcopy(theirs)).train()
    curves: list[list[float]] = []
    for side in (theirs, bridge):
        trained = [parameter for parameter in side.parameters() if parameter.requires_grad]
        assert len(trained) == 16  # two matrices of four projections in two blocks
        optimizer = torch.optim.AdamW(trained, lr=3e-2)
        torch.manual_seed(3)
        curves.append([])
        for _ in range(10):
            logits = side(TOKENS)
            logits = logits if isinstance(logits, Tensor) else logits.logits
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves[-1].append(loss.item())
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[0][-1] < curves[0][0] - 0.5


def test_what_needs_weights_says_to_merge_first(model: CodeGenForCausalLM, tmp_path: Path) -> None:
    for path in PATHS:
        bridge = boot(wrapped(model, (path,), adapted))
        with torch.no_grad():
            expected = bridge(TOKENS)
        with pytest.raises(ValueError, match="not Adapter: merge"):
            bridge.enable_compatibility_mode()
        assert not bridge.compatibility_mode
        with pytest.raises(ValueError, match="Saving needs plain Linears"):
            save_pretrained(bridge, tmp_path)
        assert torch.equal(bridge(TOKENS), expected)
        bridge.enable_compatibility_mode(no_processing=True)
        assert torch.equal(bridge(TOKENS), expected)
    attention = boot(wrapped(model, ("attn.qkv_proj", "attn.out_proj"), adapted))
    for flag in ("use_split_qkv_input", "use_attn_in", "use_attn_result"):
        getattr(attention, f"set_{flag}")(True)
        with pytest.raises(ValueError, match="merge or replace it"):
            attention(TOKENS)
        getattr(attention, f"set_{flag}")(False)


@torch.no_grad()
def test_bridge_with_an_adapter_is_copied_and_stored_whole(model: CodeGenForCausalLM) -> None:
    theirs = wrapped(model, PATHS, adapted)
    bridge = boot(copy.deepcopy(theirs))
    expected = bridge(TOKENS)
    copied = copy.deepcopy(bridge)
    attention = copied.blocks[0].attn
    assert attention.q.original_component.fused is attention.qkv.original_component
    assert attention.q.original_component.fused is not bridge.blocks[0].attn.qkv.original_component
    state = bridge.state_dict()
    for adapter in copied.modules():
        if isinstance(adapter, Adapter):
            adapter.b.weight.zero_()
    assert not torch.equal(copied(TOKENS), expected)
    copied.load_state_dict(state)
    assert torch.equal(copied(TOKENS), expected)


@torch.no_grad()
def test_parametrization_after_boot_warns_until_refresh(model: CodeGenForCausalLM) -> None:
    theirs = wrapped(model, ("attn.qkv_proj",), parametrized)
    bridge = boot(model)
    attention = bridge.blocks[1].attn
    for block in bridge.blocks:
        parametrized(block.attn.qkv.original_component)
    with pytest.warns(UserWarning, match="refresh"):
        bridge(TOKENS)
    for block in bridge.blocks:
        block.attn.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(bridge(TOKENS), theirs(TOKENS).logits)
    parametrize.remove_parametrizations(attention.qkv.original_component, "weight")
    attention.refresh()
    assert type(attention.q.original_component) is nn.Linear
    assert torch.equal(bridge(TOKENS), theirs(TOKENS).logits)


# --- torch's own hooks ------------------------------------------------------------------------------------------------


def modules_of(attention: Any) -> dict[str, nn.Module]:
    return {
        "attention": attention.original_component,
        "bridge of qkv": attention.qkv,
        "qkv": attention.qkv.original_component,
    }


@pytest.mark.parametrize("which", ["attention", "bridge of qkv", "qkv"])
def test_torch_hooks_fire_with_the_tensors_of_hugging_face(model: CodeGenForCausalLM, which: str) -> None:
    theirs = eager(copy.deepcopy(model))
    reference = theirs.transformer.h[1].attn if which == "attention" else theirs.transformer.h[1].attn.qkv_proj
    bridge = boot(model)
    module = modules_of(bridge.blocks[1].attn)[which]
    expected, found = seen_by_torch_hooks(theirs, reference), seen_by_torch_hooks(bridge, module)
    assert found.keys() == {"input", "output", "gradient"}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
    assert torch.equal(found["output"], expected["output"])


def seen_by_torch_hooks(side: nn.Module, watched: nn.Module) -> dict[str, Tensor]:
    """What a forward and backward of a model show to torch's hooks on one of its modules."""
    seen: dict[str, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        assert module is watched
        seen["input"] = args[0] if args else kwargs["hidden_states"]

    def after(module: nn.Module, args: Any, output: Any) -> None:
        seen["output"] = output[0] if isinstance(output, tuple) else output

    def backward(module: nn.Module, into: Any, out: Any) -> None:
        seen["gradient"] = out[0]

    watched.register_forward_pre_hook(before, with_kwargs=True)
    watched.register_forward_hook(after)
    watched.register_full_backward_hook(backward)
    logits = side(TOKENS)
    (logits if isinstance(logits, Tensor) else logits.logits).square().sum().backward()
    return seen


@pytest.mark.parametrize("when", ["before boot", "after boot"])
@pytest.mark.parametrize("which", ["attention", "qkv"])
@torch.no_grad()
def test_what_torch_hooks_return_is_used(model: CodeGenForCausalLM, which: str, when: str) -> None:
    def register(attention: nn.Module, projection: nn.Module) -> None:
        module = attention if which == "attention" else projection
        module.register_forward_hook(lambda _, args, output: _twice(output))
        if which == "qkv":
            module.register_forward_pre_hook(lambda _, args: (args[0] + 1,))

    theirs = eager(copy.deepcopy(model))
    register(theirs.transformer.h[1].attn, theirs.transformer.h[1].attn.qkv_proj)
    bridge = boot(copy.deepcopy(theirs) if when == "before boot" else model)
    if when == "after boot":
        attention = bridge.blocks[1].attn
        register(attention.original_component, attention.qkv.original_component)
    expected = theirs(TOKENS).logits
    assert torch.equal(bridge(TOKENS), expected)
    assert torch.equal(bridge.run_with_cache(TOKENS)[0], expected)
    assert "forward" not in bridge.blocks[1].attn.qkv.original_component.__dict__


def _twice(output: Any) -> Any:
    return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output


@torch.no_grad()
def test_hook_of_all_modules_sees_the_fused_projection(model: CodeGenForCausalLM) -> None:
    """torch's global hooks, which some profilers use."""
    bridge = boot(model)
    expected = bridge(TOKENS)
    fused = bridge.blocks[0].attn.qkv.original_component
    seen: list[Any] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        assert torch.equal(bridge(TOKENS), expected)
    finally:
        handle.remove()
    assert sum(module is fused for module in seen) == 1
    assert sum(module is bridge.blocks[0].attn for module in seen) == 1
