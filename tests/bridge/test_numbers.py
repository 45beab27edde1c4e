"""The bits of Hugging Face's attention where equal bits are possible, and its values elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hugging_face import TABLE_PER_MODEL
from hypothesis import given
from hypothesis import strategies as st
from sides import both, of_shape
from transformers import CodeGenConfig, CodeGenForCausalLM, DynamicCache, StaticCache

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Inputs = dict[str, torch.Tensor]


def probe(width: int, batch: int, seq: int, dtype: torch.dtype, seed: int = 0, positions: int = 64) -> Inputs:
    """Return inputs with gaps between positions, a soft causal mask, and left padding in the last row."""
    generator = torch.Generator().manual_seed(seed)
    lowest = torch.finfo(dtype).min
    hidden = torch.ones(seq, seq, dtype=torch.bool).triu(1).expand(batch, 1, seq, seq).clone()
    hidden[-1, :, :, : seq // 4] = True
    hidden &= ~torch.eye(seq, dtype=torch.bool)  # the output of a fully masked row depends on the number of keys
    ids = torch.stack([torch.randperm(positions, generator=generator)[:seq].sort().values for _ in range(batch)])
    return {
        "hidden_states": torch.randn(batch, seq, width, generator=generator).to(dtype),
        "position_ids": ids,
        "attention_mask": torch.randn(batch, 1, seq, seq, generator=generator).to(dtype).masked_fill(hidden, lowest),
    }


def assert_same(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


# Below d_model 32 a product of a third of the width uses another kernel, and the last bit may differ.
shapes = st.tuples(st.sampled_from([4, 8]), st.sampled_from([8, 16, 24]))


@given(
    shape=shapes,
    pairs=st.integers(1, 12),
    batch=st.integers(1, 3),
    seq=st.integers(1, 24),
    dtype=st.sampled_from(DTYPES),
    cast_table=st.booleans(),
    shared_positions=st.booleans(),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_any_shape_has_the_same_bits(
    shape: tuple[int, int],
    pairs: int,
    batch: int,
    seq: int,
    dtype: torch.dtype,
    cast_table: bool,
    shared_positions: bool,
    seed: int,
) -> None:
    heads, head_dim = shape
    rotary_dim = 2 * min(pairs, head_dim // 2)
    theirs, ours = of_shape(heads, head_dim, rotary_dim, dtype, cast_table=cast_table)
    given = probe(heads * head_dim, batch, seq, dtype, seed)
    if shared_positions:
        given["position_ids"] = given["position_ids"][:1]
    assert_same(ours(**given), theirs(**given))


@torch.no_grad()
def test_rotary_dim_none_rotates_the_whole_head(model: CodeGenForCausalLM) -> None:
    config = CodeGenConfig(**{**model.config.to_dict(), "rotary_dim": 16})
    theirs, ours = both(CodeGenForCausalLM(config).eval())
    theirs.rotary_dim = ours.original_component.rotary_dim = None
    given = probe(64, 2, 8, torch.float32)
    assert_same(ours(**given), theirs(**given))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (2, 8), (2, 128), (1, 512)])
def test_real_size_has_the_same_bits_in_inference_mode(dtype: torch.dtype, batch: int, seq: int) -> None:
    theirs, ours = of_shape(16, 64, 32, dtype)
    given = ours.get_random_inputs(batch, seq, dtype=dtype)
    given["position_ids"] = given["position_ids"] % 64
    with torch.inference_mode():
        assert_same(ours(**given), theirs(**given))


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_autocast_has_the_same_bits(model: CodeGenForCausalLM, low: torch.dtype) -> None:
    theirs, ours = both(model)
    caches = DynamicCache(), DynamicCache()
    given = probe(64, 2, 9, torch.float32)
    with torch.autocast("cpu", dtype=low):
        assert_same(ours(**given), theirs(**given))
        assert_same(ours(**given, layer_past=caches[0]), theirs(**given, layer_past=caches[1]))
    kept = low if TABLE_PER_MODEL else torch.float32
    assert caches[0].layers[1].keys.dtype == caches[1].layers[1].keys.dtype == kept
    assert torch.equal(caches[0].layers[1].keys, caches[1].layers[1].keys)


def cut(given: Inputs, lengths: list[int]) -> list[Inputs]:
    """Cut a sequence into pieces, each of which sees all keys up to its own."""
    steps, start = [], 0
    for length in lengths:
        now = slice(start, start + length)
        steps.append(
            {
                "hidden_states": given["hidden_states"][:, now],
                "position_ids": given["position_ids"][:, now],
                "attention_mask": given["attention_mask"][:, :, now, : now.stop],
            }
        )
        start = now.stop
    return steps


@given(
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
)
@torch.no_grad()
def test_any_split_into_cached_pieces_has_the_same_bits(
    lengths: list[int], batch: int, dtype: torch.dtype, seed: int
) -> None:
    theirs, ours = of_shape(4, 16, 8, dtype)
    caches = DynamicCache(), DynamicCache()
    for step in cut(probe(64, batch, sum(lengths), dtype, seed), lengths):
        ignored = {"cache_position": torch.arange(1), "use_cache": True}
        assert_same(ours(**step, past_key_values=caches[0], **ignored), theirs(**step, layer_past=caches[1]))
    for part in ("keys", "values"):
        assert torch.equal(getattr(caches[0].layers[0], part), getattr(caches[1].layers[0], part))


@given(lengths=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 9))
@torch.no_grad()
def test_any_split_into_cached_pieces_agrees_with_one_pass(lengths: list[int], seed: int) -> None:
    """In float64, where rounding is far below the effect of a fault."""
    _, ours = of_shape(4, 16, 8, torch.float64)
    given = probe(64, 2, sum(lengths), torch.float64, seed)
    cache = DynamicCache()
    pieces = [ours(**step, layer_past=cache)[0] for step in cut(given, lengths)]
    # Scores are float32 products whatever the model's dtype, and the mask makes them float64 afterwards.
    torch.testing.assert_close(torch.cat(pieces, dim=1), ours(**given)[0], rtol=1e-5, atol=1e-5)


@given(offset=st.integers(1, 30), seq=st.integers(2, 12), seed=st.integers(0, 9))
@torch.no_grad()
def test_offset_of_all_positions_leaves_the_pattern(offset: int, seq: int, seed: int) -> None:
    _, ours = of_shape(4, 16, 8, torch.float32)
    given = probe(64, 2, seq, torch.float32, seed, positions=32)
    moved = {**given, "position_ids": given["position_ids"] + offset}
    torch.testing.assert_close(ours(**moved)[1], ours(**given)[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cache_of_fixed_size_has_the_same_bits(model: CodeGenForCausalLM) -> None:
    theirs, ours = both(model, layer=0)
    caches = [StaticCache(config=model.config, max_cache_len=16) for _ in range(2)]
    given = probe(64, 2, 8, torch.float32)
    mask = torch.full((2, 1, 8, 16), torch.finfo(torch.float32).min)
    mask[..., :8] = given["attention_mask"]
    for step in cut({**given, "attention_mask": mask}, [6, 2]):
        step["attention_mask"] = mask[:, :, : step["hidden_states"].shape[1]]
        assert_same(ours(**step, layer_past=caches[0]), theirs(**step, layer_past=caches[1]))


@torch.no_grad()
def test_no_mask_hides_the_unfilled_keys_of_a_fixed_cache(model: CodeGenForCausalLM) -> None:
    _, ours = both(model, layer=0)
    given = ours.get_random_inputs(1, 6)
    cache = StaticCache(config=model.config, max_cache_len=16)
    pieces = []
    for now in (slice(0, 4), slice(4, 6)):
        hidden, positions = given["hidden_states"][:, now], given["position_ids"][:, now]
        pieces.append(ours(hidden, layer_past=cache, position_ids=positions)[0])
    torch.testing.assert_close(torch.cat(pieces, 1), ours(**given)[0])


@contextlib.contextmanager
def listening(attention: Any, names: tuple[str, ...]) -> Any:
    """Attach hooks that return nothing."""
    points = [attention.get_submodule(name) for name in names]
    for point in points:
        point.add_hook(lambda tensor, hook: None)
    yield
    for point in points:
        point.remove_hooks()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "names",
    [("hook_attn_scores",), ("qkv.hook_in", "qkv.hook_out"), ("q.hook_in", "hook_in", "o.hook_in"), ("hook_pattern",)],
    ids=lambda names: names[0],
)
@torch.no_grad()
def test_hooks_that_only_read_change_no_bit(names: tuple[str, ...], dtype: torch.dtype) -> None:
    for batch, seq in ((1, 1), (1, 17), (2, 8)):
        theirs, ours = of_shape(4, 16, 8, dtype)
        given = probe(64, batch, seq, dtype)
        with listening(ours, names):
            assert_same(ours(**given), theirs(**given))


@torch.no_grad()
def test_tensor_that_a_hook_kept_is_not_overwritten(model: CodeGenForCausalLM) -> None:
    _, ours = both(model)
    kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda tensor, hook: kept.update({name: (tensor, tensor.clone())})

    for name in ("hook_in", "qkv.hook_out", "hook_rot_q", "hook_rot_k", "hook_attn_scores", "hook_pattern", "hook_out"):
        ours.get_submodule(name).add_hook(keep(name))
    ours(**probe(64, 2, 8, torch.float32))
    assert len(kept) == 7
    for name, (shown, copy_of_it) in kept.items():
        assert torch.equal(shown, copy_of_it), name


@pytest.mark.parametrize("returned", [False, True])
@torch.no_grad()
def test_tensor_kept_by_a_removed_hook_is_not_overwritten(model: CodeGenForCausalLM, returned: bool) -> None:
    _, ours = both(model)
    given = probe(64, 2, 8, torch.float32)
    expected = ours(**given)[1]
    kept: list[torch.Tensor] = []

    def once(tensor: torch.Tensor, hook: Any) -> torch.Tensor | None:
        hook.remove_hooks("fwd")
        kept.extend([tensor.clone(), tensor.clone() if returned else tensor])
        return kept[1] if returned else None

    ours.hook_attn_scores.add_hook(once)
    assert torch.equal(ours(**given)[1], expected)
    assert torch.equal(*kept)


def test_torch_hook_on_scores_keeps_them_intact(model: CodeGenForCausalLM) -> None:
    """A hook that was not added by TransformerLens's `add_hook` counts as well."""
    _, ours = both(model)
    seen = []
    handle = ours.hook_attn_scores.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        pattern = ours(**probe(64, 2, 8, torch.float32))[1]
    handle.remove()
    torch.testing.assert_close(seen[0].softmax(-1), pattern)
    assert not torch.equal(seen[0], pattern)


def test_function_transforms_over_inputs_work(model: CodeGenForCausalLM) -> None:
    """vmap, forward-mode and reverse-mode differentiation do not allow overwriting."""
    _, ours = both(model.requires_grad_(False))
    given = probe(64, 1, 5, torch.float32)
    hidden, context = given["hidden_states"], {k: given[k] for k in ("position_ids", "attention_mask")}

    def run(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = ours(x, **context)[0]
        return out

    direction = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    out, forward = torch.func.jvp(run, (hidden,), (direction,))
    _, pull = torch.func.vjp(run, hidden)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close((forward * cotangent).sum(), (pull(cotangent)[0] * direction).sum())
    batched = torch.func.vmap(run)(torch.stack([hidden, hidden * 2]))
    torch.testing.assert_close(batched[0], run(hidden))


@pytest.mark.parametrize(("dtype", "seq"), [(torch.float32, 1), (torch.float32, 3), (torch.bfloat16, 3)])
def test_function_transforms_over_weights_work(model: CodeGenForCausalLM, dtype: torch.dtype, seq: int) -> None:
    """One product for q, k and v reads the weights' memory, which a transform does not."""
    _, ours = both(model.requires_grad_(False), dtype)
    given = probe(64, 1, seq, dtype)
    names = [f"{which}._original_component.weight" for which in "qkv"]
    weights = {name: ours.get_parameter(name).detach() for name in names}

    def run(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(ours, weights, (), given)[0].double()  # type: ignore[no-any-return]

    batched = torch.func.vmap(run)({name: torch.stack([weight, 2 * weight]) for name, weight in weights.items()})
    torch.testing.assert_close(
        batched[1], run({name: 2 * weight for name, weight in weights.items()}), rtol=0.05, atol=1e-3
    )
    output, pull = torch.func.vjp(run, weights)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    (gradients,) = pull(cotangent)
    alone = next(reversed(weights))  # v's: a tangent of one weight is enough
    tangents = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    tangents[alone] = torch.randn(64, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    _, forward = torch.func.jvp(run, (weights,), (tangents,))
    pulled = (gradients[alone].double() * tangents[alone]).sum()
    torch.testing.assert_close((forward * cotangent).sum(), pulled, rtol=0.05, atol=1e-3)
    assert pulled.abs() > 0.01


def test_tangent_of_one_weight_reaches_the_output(model: CodeGenForCausalLM) -> None:
    """`torch.autograd.forward_ad` puts the tangent into the module, without a function transform."""
    _, ours = both(model.requires_grad_(False))
    given = probe(64, 1, 1, torch.float32)
    with torch.autograd.forward_ad.dual_level():
        owner = ours.v.original_component
        weight = owner._parameters.pop("weight")
        owner._parameters["weight"] = torch.autograd.forward_ad.make_dual(weight.detach(), weight.detach())
        tangent = torch.autograd.forward_ad.unpack_dual(ours(**given)[0]).tangent
    owner._parameters["weight"] = weight
    torch.testing.assert_close(tangent, ours(**given)[0])  # it is linear in v's weight
