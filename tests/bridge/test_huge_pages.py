"""Buffers that are used again: never while a tensor refers to them, and with the same bits."""

from __future__ import annotations

import copy
import errno
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sides import both, of_shape
from torch import nn
from transformers import CodeGenConfig, CodeGenForCausalLM

from cgverify.bridge import boot, huge_pages
from cgverify.bridge.joint_projection import make_adjacent

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(huge_pages, "LARGE_RESULT", 1)
    monkeypatch.setattr(huge_pages, "LARGE_KEPT", 1)
    monkeypatch.setattr(huge_pages, "_last", None)
    return


def some(*shape: int) -> torch.Tensor | None:
    return huge_pages.result_buffer(*shape, dtype=torch.float32, inputs=[torch.ones(1)])


def test_linear_of_strided_input_has_the_bits_of_torch() -> None:
    """torch multiplies a strided input as it lies, and a contiguous copy in another order."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 64).requires_grad_(False)
    wide = torch.randn(3, 5, 192)
    for x in (wide[..., ::2], wide[..., :96], wide[..., :96].transpose(0, 1)):
        assert torch.equal(huge_pages.apply_linear(linear, x), linear(x))


def test_buffer_is_reused_when_no_tensor_refers_to_it() -> None:
    first = some(3, 5)
    assert first is not None
    assert first.shape == (3, 5)
    assert first.is_contiguous()
    place = first.data_ptr()
    del first
    again = some(5, 3)
    assert again is not None
    assert again.data_ptr() == place
    other = some(4, 5)
    assert other is not None
    assert other.data_ptr() != place


@pytest.mark.parametrize("keep", [lambda t: t, lambda t: t[1:, :2], lambda t: t.detach(), lambda t: t.numpy()])
def test_buffer_is_not_reused_while_anything_refers_to_it(keep: Any) -> None:
    tensor = some(3, 5)
    assert tensor is not None
    kept = keep(tensor.fill_(1.0))
    del tensor
    for _ in range(2):
        fresh = some(3, 5)
        assert fresh is not None
        fresh.fill_(2.0)
    assert (kept == 1.0).all()


def test_kept_buffers_are_separate_and_not_reused() -> None:
    first, second = (huge_pages.kept_buffer(3, 5, dtype=torch.float32, inputs=[torch.ones(1)]) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.data_ptr() != second.data_ptr()
    assert huge_pages._last is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 9, 64)])
@torch.no_grad()
def test_linear_in_huge_pages_has_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    linear, x = torch.nn.Linear(64, 300).to(dtype), torch.randn(shape).to(dtype)
    found = huge_pages.apply_linear(linear, x)
    assert torch.equal(found, linear(x))
    assert found.shape == (*shape[:2], 300)
    with pytest.raises(RuntimeError, match="resiz"):  # it is in a buffer
        found.untyped_storage().resize_(10**6)


@pytest.mark.parametrize(
    "prepare",
    [
        lambda linear: linear.requires_grad_(),
        lambda linear: linear.register_forward_hook(lambda *_: None),
        lambda linear: setattr(linear, "forward", linear.forward),
        lambda linear: torch.nn.utils.parametrizations.weight_norm(linear),
    ],
)
def test_linear_with_more_to_do_is_called(prepare: Any) -> None:
    linear, x = torch.nn.Linear(64, 30).requires_grad_(False), torch.randn(2, 5, 64)
    huge_pages.apply_linear(linear, x.transpose(0, 1).contiguous())
    prepare(linear)
    huge_pages.apply_linear(linear, x).untyped_storage().resize_(10**6)  # torch's own memory


@torch.no_grad()
def test_linear_of_a_strided_input_has_the_same_bits() -> None:
    linear, x = torch.nn.Linear(64, 300), torch.randn(9, 2, 64).transpose(0, 1)
    assert torch.equal(huge_pages.apply_linear(linear, x), linear(x))


def test_buffer_is_not_reused_while_autograd_refers_to_it() -> None:
    weight = torch.ones(5, 2, requires_grad=True)
    pattern = some(3, 5)
    assert pattern is not None
    mixed = pattern.fill_(1.0) @ weight
    del pattern
    other = some(3, 5)
    assert other is not None
    other.fill_(7.0)
    mixed.sum().backward()
    assert weight.grad is not None
    assert (weight.grad == 3.0).all()


def test_no_buffer_if_an_operation_cannot_have_an_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert huge_pages.result_buffer(2, 2, dtype=torch.float32, inputs=[torch.ones(1, requires_grad=True)]) is None
    assert huge_pages.result_buffer(2, 2, dtype=torch.float32, inputs=[torch.ones(1, device="meta")]) is None
    monkeypatch.setattr(huge_pages, "LARGE_RESULT", 17)
    assert some(2, 2) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_forwards_with_buffers_do_not_overwrite_results(model: CodeGenForCausalLM, dtype: torch.dtype) -> None:
    theirs, ours = both(model, dtype, cast_table=True)
    runs = [ours.get_random_inputs(2, 9, dtype=dtype) for _ in range(3)]
    found = [ours(**given) for given in runs]  # all kept until all have run
    places = {pattern.data_ptr() for _, pattern in found}
    assert len(places) == 3
    for given, (output, pattern) in zip(runs, found, strict=True):
        expected = theirs(**given)
        assert torch.equal(output, expected[0])
        assert torch.equal(pattern, expected[1])


@torch.no_grad()
def test_forwards_with_buffers_do_not_overwrite_kept_tensors(model: CodeGenForCausalLM) -> None:
    bridge = boot(copy.deepcopy(model))
    ours = bridge.blocks[1].attn
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for point in (ours.hook_attn_scores, ours.hook_pattern):
        point.add_hook(lambda tensor, hook: kept.append((tensor, tensor.clone())))
    for _ in range(3):
        ours(**ours.get_random_inputs(2, 9))
    assert len(kept) == 6
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_with_buffers_has_the_same_bits(dtype: torch.dtype, low: torch.dtype) -> None:
    """Autocast casts the inputs of an operation, but not those of an operation with an `out=`."""
    theirs, ours = of_shape(4, 16, 8, dtype)
    given = ours.get_random_inputs(2, 9, dtype=dtype)
    with torch.autocast("cpu", dtype=low):
        for found, expected in zip(ours(**given), theirs(**given), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_traced_attention_does_not_overwrite_results() -> None:
    """A trace keeps the memory of every tensor that was not created by an operation of torch."""
    _, ours = of_shape(4, 16, 8, torch.float32)
    runs = [ours.get_random_inputs(1, 9) for _ in range(3)]
    traced = torch.jit.trace(ours, example_kwarg_inputs=runs[0], check_trace=False)
    found = [traced(**given) for given in runs[1:]]
    for given, (output, pattern) in zip(runs[1:], found, strict=True):
        assert torch.equal(output, ours(**given)[0])
        assert torch.equal(pattern, ours(**given)[1])


def test_large_weights_are_adjacent_in_their_own_pages() -> None:
    linears = [torch.nn.Linear(512, 1024, bias=False) for _ in range(3)]
    before = [linear.weight.clone() for linear in linears]
    make_adjacent(linears)
    places = [linear.weight.data_ptr() for linear in linears]
    assert places[0] % mmap.PAGESIZE == 0
    assert [place - places[0] for place in places] == [0, 1 << 21, 1 << 22]
    assert all(torch.equal(linear.weight, was) for linear, was in zip(linears, before, strict=True))
    small = [torch.nn.Linear(8, 8, bias=False) for _ in range(3)]
    make_adjacent(small)
    assert huge_pages.weight_buffer(3 * 8, 8, like=small[0].weight) is None


def test_bridge_with_large_weights_can_be_shared_and_saved(tmp_path: Path) -> None:
    """Storages from a memory map cannot be resized, and none of this may need it."""
    config = CodeGenConfig(n_layer=1, n_embd=512, n_head=8, rotary_dim=16, vocab_size=11, n_positions=16, n_ctx=16)
    bridge, tokens = boot(CodeGenForCausalLM(config).eval()), torch.arange(8)[None]
    with torch.no_grad():
        expected = bridge(tokens)
        bridge.share_memory()
        assert all(parameter.is_shared() for parameter in bridge.parameters())
        assert torch.equal(bridge(tokens), expected)
        torch.save(bridge.state_dict(), tmp_path / "weights.pt")
        again = copy.deepcopy(bridge)
        again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(again(tokens), expected)


def test_large_weights_of_a_booted_model_are_in_their_own_pages() -> None:
    config = CodeGenConfig(n_layer=1, n_embd=512, n_head=8, rotary_dim=16, vocab_size=2048, n_positions=16, n_ctx=16)
    config._attn_implementation = "eager"
    model = CodeGenForCausalLM(config).eval()
    tied, block, tokens = model.lm_head.weight, model.transformer.h[0], torch.arange(6)[None]
    model.transformer.wte.weight = tied
    linears = [model.lm_head, block.mlp.fc_in, block.mlp.fc_out]
    expected = copy.deepcopy(model)(tokens).logits
    bridge = boot(model)
    assert [linear.weight.data_ptr() % mmap.PAGESIZE for linear in linears] == [0, 0, 0]
    assert model.transformer.wte.original_component.weight is model.lm_head.original_component.weight is tied
    assert torch.equal(bridge(tokens), expected)


def test_lack_of_memory_is_reported_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(MemoryError, match="Cannot allocate memory"):
        huge_pages.move_weights([nn.Linear(1024, 1024)])


@pytest.mark.parametrize(
    "prepare",
    [
        lambda linear: linear.weight.data.share_memory_(),
        lambda linear: setattr(linear, "forward", linear.forward),
        lambda linear: setattr(linear, "weight", nn.Parameter(torch.randn(1024, 1024).mT)),
        lambda linear: linear.to(torch.bfloat16).to("meta"),
        lambda linear: setattr(linear, "__class__", type("Adapter", (nn.Linear,), {})),
    ],
)
def test_weights_that_others_rely_on_are_not_moved(prepare: Any) -> None:
    plain, linear = nn.Linear(1024, 1024), nn.Linear(1024, 1024)
    prepare(linear)
    places = [each.weight.data_ptr() for each in (plain, linear)]
    huge_pages.move_weights([plain, linear])
    moved = [each.weight.data_ptr() for each in (plain, linear)]
    assert moved[0] != places[0]
    assert moved[1] == places[1]
