"""Every hook fires in its setting, and the computation goes on with what a hook returns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sides import both, small_config, tokenizer
from transformer_lens import patching
from transformer_lens.benchmarks import backward_gradients, hook_registration
from transformer_lens.model_bridge.generalized_components import LinearBridge
from transformers import CodeGenForCausalLM

from cgverify.bridge import boot, split_features

TOKENS = torch.randint(101, (2, 6), generator=torch.Generator().manual_seed(0))
ALWAYS = (
    *("hook_in", "q.hook_in", "k.hook_in", "v.hook_in", "qkv.hook_in", "qkv.hook_out"),
    *("q.hook_out", "k.hook_out", "v.hook_out", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern"),
    *("o.hook_in", "o.hook_out", "hook_hidden_states", "hook_out"),
)
UNDER_A_FLAG = {
    "use_attn_result": ("hook_result",),
    "use_split_qkv_input": ("hook_q_input", "hook_k_input", "hook_v_input"),
    "use_attn_in": ("hook_attn_in",),
}


def hooks_of(attention: Any) -> set[str]:
    return {name for name, module in attention.named_modules() if type(module).__name__ == "HookPoint"}


@torch.no_grad()
def test_every_registered_hook_fires_in_its_setting(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    _, cache = bridge.run_with_cache(TOKENS)
    fired = {name.removeprefix("blocks.1.attn.") for name in cache if name.startswith("blocks.1.attn.")}
    for flag in UNDER_A_FLAG:
        getattr(bridge, f"set_{flag}")(True)
        _, cache = bridge.run_with_cache(TOKENS)
        fired |= {name.removeprefix("blocks.1.attn.") for name in cache if name.startswith("blocks.1.attn.")}
        getattr(bridge, f"set_{flag}")(False)
    for name in ("q.hook_out", "k.hook_out", "v.hook_out", "o.hook_in", "hook_rot_q", "hook_rot_k"):
        assert cache[f"blocks.1.attn.{name}"].shape == (2, 6, 4, 16), name
    for name in ("hook_attn_scores", "hook_pattern"):
        assert cache[f"blocks.1.attn.{name}"].shape == (2, 4, 6, 6), name
    registered = {name for name in hooks_of(bridge.blocks[1].attn) if not name.startswith("_original_component")}
    assert registered <= fired
    assert registered == {*ALWAYS, *(hook for hooks in UNDER_A_FLAG.values() for hook in hooks)}


@torch.no_grad()
def test_hook_mlp_in_is_a_fork_of_the_residual_for_the_mlp(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    logits = bridge(TOKENS)
    bridge.set_use_hook_mlp_in(True)
    hooked, cache = bridge.run_with_cache(TOKENS)
    assert torch.equal(hooked, logits)
    assert torch.equal(cache["blocks.1.hook_mlp_in"], cache["blocks.1.hook_resid_pre"])
    assert torch.equal(cache["blocks.1.mlp.hook_in"], cache["blocks.1.ln1.hook_out"])
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        (f"blocks.1.{name}", lambda x, hook: seen.update({hook.name: x})) for name in ("mlp.hook_in", "attn.hook_in")
    ]
    bridge.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.hook_mlp_in", lambda x, hook: x**2), *hooks])
    ln1 = bridge.blocks[1].ln1.original_component
    assert torch.equal(seen["blocks.1.mlp.hook_in"], ln1(cache["blocks.1.hook_resid_pre"] ** 2))
    assert torch.equal(seen["blocks.1.attn.hook_in"], cache["blocks.1.attn.hook_in"])


@torch.no_grad()
def test_fused_hook_sees_hugging_faces_tensor(model: CodeGenForCausalLM) -> None:
    theirs, ours = both(model)
    given = ours.get_random_inputs()
    seen: dict[str, torch.Tensor] = {}
    handle = theirs.qkv_proj.register_forward_hook(lambda module, args, output: seen.update(theirs=output))
    theirs(**given)
    handle.remove()
    ours.qkv.hook_out.add_hook(lambda tensor, hook: seen.update(ours=tensor))
    ours(**given)
    assert torch.equal(seen["ours"], seen["theirs"])


class Doubled(LinearBridge):
    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * super().forward(input, *args, **kwargs)


class Around(torch.nn.Module):
    """Wrap a projection, as a library of adapters does."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(tensor)  # type: ignore[no-any-return]


def _forward_of_its_own(attention: Any) -> None:
    linear = attention.v.original_component
    plain = linear.forward
    linear.forward = lambda tensor: 2 * plain(tensor)


UNUSUAL: dict[str, Callable[[Any], Any]] = {
    "hook of torch's": lambda attention: attention.v.register_forward_hook(lambda module, args, output: 2 * output),
    "forward of its own": _forward_of_its_own,
    "subclass": lambda attention: setattr(attention.v, "__class__", Doubled),
    "wrapper": lambda attention: setattr(attention, "v", Around(attention.v)),
}


@pytest.mark.parametrize("kind", UNUSUAL)
@pytest.mark.parametrize(("dtype", "seq"), [(torch.float32, 4), (torch.float32, 1), (torch.bfloat16, 4)])
@torch.no_grad()
def test_changed_projection_is_used_with_and_without_hooks(
    model: CodeGenForCausalLM, kind: str, dtype: torch.dtype, seq: int
) -> None:
    _, ours = both(model, dtype)
    given = ours.get_random_inputs(1, seq, dtype=dtype)
    once = ours(**given)[0]
    UNUSUAL[kind](ours)
    twice = ours(**given)[0]
    assert torch.equal(twice, 2 * once)
    seen: list[torch.Tensor] = []
    ours.qkv.hook_out.add_hook(lambda tensor, hook: seen.append(tensor))
    assert torch.equal(ours(**given)[0], twice)
    _, _, value = split_features(seen[0])
    assert torch.equal(value, ours.v(given["hidden_states"]))
    ours.qkv.hook_out.remove_hooks()
    ours.q.hook_out.add_hook(lambda tensor, hook: None)
    assert torch.equal(ours(**given)[0], twice)


@pytest.mark.parametrize("name", ALWAYS)
def test_what_a_hook_returns_is_used(model: CodeGenForCausalLM, name: str) -> None:
    """Under autograd too: the gradient reaches the tensor that the hook returned."""
    _, ours = both(model)
    given = ours.get_random_inputs()
    before = ours(**given)[0].detach()
    stand_in: dict[str, torch.Tensor] = {}

    def replace(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        stand_in["tensor"] = tensor.detach().flip(-1).clone().requires_grad_()
        return stand_in["tensor"]

    ours.get_submodule(name).add_hook(replace)
    output = ours(**given)[0]
    assert not torch.allclose(output, before)
    output.square().sum().backward()
    assert stand_in["tensor"].grad is not None
    assert stand_in["tensor"].grad.abs().max() > 0
    ours.get_submodule(name).remove_hooks()
    assert torch.equal(ours(**given)[0], before)


def test_gradient_arrives_at_every_tensor_that_a_hook_sees(nano: Path) -> None:
    """`retain_grad` works on what is shown, so what is shown is what is used."""
    bridge, tokens = boot(nano), torch.tensor([list(b"x = [1, 2, 3")])
    kept: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        if tensor.requires_grad:
            tensor.retain_grad()
            kept[hook.name] = tensor

    gated = {hook for hooks in UNDER_A_FLAG.values() for hook in hooks} | {"hook_mlp_in"}
    names = [name for name, point in bridge.hook_dict.items() if point.name.rpartition(".")[2] not in gated]
    with bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
        bridge(tokens, return_type="loss").backward()
    assert {f"blocks.2.attn.{name}" for name in ALWAYS} <= kept.keys()
    assert not [name for name, tensor in kept.items() if tensor.grad is None]
    q = kept["blocks.2.attn.q.hook_out"]
    assert q.shape == (1, 12, 8, 24)
    assert kept["blocks.2.attn.hook_rot_q"].shape == q.shape


@pytest.mark.parametrize(("flag", "name"), [(flag, hook) for flag, hooks in UNDER_A_FLAG.items() for hook in hooks])
@torch.no_grad()
def test_hooks_behind_a_flag_are_per_head_and_used(flag: str, name: str) -> None:
    torch.manual_seed(0)
    bridge = boot(CodeGenForCausalLM(small_config(initializer_range=0.2)).eval())
    plain = bridge(TOKENS)
    getattr(bridge, f"set_{flag}")(True)
    seen: list[torch.Tensor] = []
    shown = bridge.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.0.attn.{name}", lambda x, hook: seen.append(x))])
    assert seen[0].shape == (2, 6, 4, 64)
    torch.testing.assert_close(shown, plain)

    def without_head_2(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, :, 2] = 0
        return tensor

    changed = bridge.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.0.attn.{name}", without_head_2)])
    assert not torch.allclose(changed, plain)


@torch.no_grad()
def test_input_fork_starts_before_the_layer_norm(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    bridge.set_use_split_qkv_input(True)
    _, cache = bridge.run_with_cache(TOKENS)
    for name in ("hook_q_input", "hook_k_input", "hook_v_input"):
        for head in range(4):
            assert torch.equal(cache[f"blocks.1.attn.{name}"][:, :, head], cache["blocks.1.hook_resid_pre"])


@torch.no_grad()
def test_forked_query_input_of_a_head_changes_only_its_query(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    bridge.set_use_split_qkv_input(True)
    _, plain = bridge.run_with_cache(TOKENS)

    def change_head_1(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, :, 1] = tensor[:, :, 1].flip(-1)
        return tensor

    with bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_q_input", change_head_1)]):
        _, changed = bridge.run_with_cache(TOKENS)
    same = (plain["blocks.0.attn.hook_q"] == changed["blocks.0.attn.hook_q"]).all(-1).all(0).all(0)
    assert same.tolist() == [True, False, True, True]
    assert torch.equal(plain["blocks.0.attn.hook_k"], changed["blocks.0.attn.hook_k"])


@torch.no_grad()
def test_results_per_head_add_up_to_the_output(model: CodeGenForCausalLM) -> None:
    bridge = boot(model)
    bridge.set_use_attn_result(True)
    _, cache = bridge.run_with_cache(TOKENS)
    total = cache["blocks.0.attn.hook_result"].sum(-2)
    torch.testing.assert_close(cache["blocks.0.attn.hook_out"], total)


PATCHES = [
    patching.get_act_patch_resid_pre,
    patching.get_act_patch_attn_out,
    patching.get_act_patch_mlp_out,
    patching.get_act_patch_attn_head_out_by_pos,
    patching.get_act_patch_attn_head_q_by_pos,
    patching.get_act_patch_attn_head_k_by_pos,
    patching.get_act_patch_attn_head_v_by_pos,
    patching.get_act_patch_attn_head_pattern_by_pos,
    patching.get_act_patch_attn_head_pattern_all_pos,
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: str(patch.keywords["activation_name"]))
@torch.no_grad()
def test_activation_patching_works(patch: Any) -> None:
    torch.manual_seed(0)
    bridge = boot(CodeGenForCausalLM(small_config(initializer_range=0.2)).eval())
    clean, corrupted = TOKENS[:1], TOKENS[1:]
    clean_logits, cache = bridge.run_with_cache(clean)
    base = bridge(corrupted)

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return (logits[0, -1] - base[0, -1]).norm() / (clean_logits[0, -1] - base[0, -1]).norm()

    effects = patch(bridge, corrupted, cache, metric)
    assert effects.isfinite().all()
    assert effects.max() > 0.01
    if patch is patching.get_act_patch_resid_pre:  # a patch at the last layer and position has the whole effect
        assert effects[0].max() <= 1.5


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A bridge with a tokenizer. The checks that use it restore what they change."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("with_text")
    CodeGenForCausalLM(small_config(vocab_size=300, initializer_range=0.1)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return boot(folder)


@pytest.mark.parametrize(
    "check",
    [
        hook_registration.benchmark_hook_registry,
        hook_registration.benchmark_gated_hooks_fire,
        hook_registration.benchmark_forward_hooks,
        hook_registration.benchmark_critical_forward_hooks,
        hook_registration.benchmark_hook_functionality,
        backward_gradients.benchmark_backward_hooks,
        backward_gradients.benchmark_critical_backward_hooks,
        backward_gradients.benchmark_gradient_computation,
    ],
    ids=lambda check: check.__name__,
)
@pytest.mark.filterwarnings("ignore")
def test_transformer_lens_checks_pass(with_text: Any, check: Any) -> None:
    alone = check in (hook_registration.benchmark_hook_registry, hook_registration.benchmark_gated_hooks_fire)
    result = check(with_text) if alone else check(with_text, "def f(x):")
    assert result.passed, result
    if check is hook_registration.benchmark_gated_hooks_fire:
        assert not result.details["skipped"]
        assert set(result.details["fired_counts"]) == {hook for hooks in UNDER_A_FLAG.values() for hook in hooks}


def test_two_boots_have_equal_hooks(with_text: Any) -> None:
    """Nothing depends on the content of newly allocated memory."""
    again = copy.deepcopy(with_text)
    tokens = torch.randint(300, (1, 9))
    with torch.no_grad():
        _, first = with_text.run_with_cache(tokens)
        _, second = again.run_with_cache(tokens)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
