"""Features that our bridge has and TransformerLens's CodeGen bridge lacks.

Our bridge passes each check, and upstream's fails it. docs/bridge-compared.md has a row for each.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import callable_by_positions, needs_upstream, to_dtype, without_embeddings
from sides import small_config, tokenizer
from transformer_lens.model_bridge.supported_architectures.codegen import CodeGenArchitectureAdapter
from transformers import CodeGenForCausalLM

from cgverify.bridge.booting import CodeGenAdapter, bridge_from

Check = Callable[["Sides"], None]
FEATURES: dict[str, Check] = {}


class Sides:
    """A small model, a bridge of a copy of it, and inputs for one attention."""

    def __init__(self, adapter: type[Any]) -> None:
        self.adapter = adapter

    def boot(self, dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = to_dtype(CodeGenForCausalLM(small_config(initializer_range=0.2, **config)).eval(), dtype)
        return model, bridge_from(copy.deepcopy(model), self.adapter)

    def attentions(self, dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Any, Any, dict[str, Any]]:
        model, bridge = self.boot(dtype, **config)
        theirs, ours = callable_by_positions(model.transformer.h[0].attn, model), bridge.blocks[0].attn
        return theirs, ours, without_embeddings(ours.get_random_inputs(2, 9, dtype=dtype))


def feature(name: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        FEATURES[name] = check
        return check

    return register


TOKENS = torch.randint(101, (2, 9), generator=torch.Generator().manual_seed(0))


@feature("generation in bfloat16 and float16")
def _(sides: Sides) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, bridge = sides.boot(dtype)
        found = bridge.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
        expected = model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
        assert torch.equal(found, expected)


@feature("the bits of Hugging Face's attention at every shape")
def _(sides: Sides) -> None:
    theirs, ours, given = sides.attentions()
    for batch, seq in ((1, 1), (2, 8), (2, 9), (3, 40)):
        given = ours.get_random_inputs(batch, seq)
        assert torch.equal(ours(**given)[0], theirs(**given)[0])


@feature("the bits of Hugging Face's logits")
def _(sides: Sides) -> None:
    model, bridge = sides.boot()
    assert torch.equal(bridge(TOKENS), model(TOKENS).logits)


@feature("float64: finite scores in float64")
def _(sides: Sides) -> None:
    _, ours, given = sides.attentions(torch.float64)
    seen: list[torch.Tensor] = []
    ours.hook_attn_scores.add_hook(lambda tensor, hook: seen.append(tensor))
    ours(**given)
    assert seen[0].dtype == torch.float64
    assert seen[0].isfinite().all()


def _fires(name: str, flag: str | None = None) -> Check:
    def check(sides: Sides) -> None:
        _, bridge = sides.boot()
        if flag is not None:
            getattr(bridge, f"set_{flag}")(True)
        seen: list[torch.Tensor] = []
        bridge.run_with_hooks(TOKENS, fwd_hooks=[(f"blocks.0.{name}", lambda tensor, hook: seen.append(tensor))])
        assert seen

    return check


for _name, _flag in (
    *(("attn.hook_rot_q", None), ("attn.hook_rot_k", None), ("attn.qkv.hook_in", None), ("attn.qkv.hook_out", None)),
    *(("attn.hook_result", "use_attn_result"), ("attn.hook_attn_in", "use_attn_in")),
    *((f"attn.hook_{which}_input", "use_split_qkv_input") for which in "qkv"),
    ("hook_mlp_in", "use_hook_mlp_in"),
):
    FEATURES[f"`{_name}` fires" + (f" under `{_flag}`" if _flag else "")] = _fires(_name, _flag)


@feature("a gradient arrives at what `hook_q`, `hook_k`, `hook_v` and `hook_z` show")
def _(sides: Sides) -> None:
    _, bridge = sides.boot()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor, hook: Any) -> None:
        tensor.retain_grad()
        kept.append(tensor)

    names = [f"blocks.1.attn.hook_{which}" for which in ("q", "k", "v", "z")]
    with torch.enable_grad(), bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
        bridge(TOKENS).sum().backward()
    assert [tensor.grad is not None for tensor in kept] == [True] * 4


@feature("torch's own hooks on `qkv_proj` fire")
def _(sides: Sides) -> None:
    _, bridge = sides.boot()
    seen: list[Any] = []
    bridge.blocks[0].attn.qkv.original_component.register_forward_hook(lambda *_: seen.append(1))
    bridge(TOKENS)
    assert seen


class Adapter(torch.nn.Module):
    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, None
        self.added = torch.nn.Linear(base.in_features, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.added(x)  # type: ignore[no-any-return]


@feature("an adapter on `qkv_proj` takes part")
def _(sides: Sides) -> None:
    model, _ = sides.boot()
    model.transformer.h[0].attn.qkv_proj = Adapter(model.transformer.h[0].attn.qkv_proj)
    torch.testing.assert_close(bridge_from(copy.deepcopy(model), sides.adapter)(TOKENS), model(TOKENS).logits)


@feature("several texts have the loss of each alone")
def _(sides: Sides) -> None:
    _, bridge = sides.boot(vocab_size=300)
    bridge.tokenizer = tokenizer()
    together = bridge(["abc", "abcdefgh"], return_type="loss")
    alone = [bridge(text, return_type="loss") for text in ("abc", "abcdefgh")]
    torch.testing.assert_close(together, (3 * alone[0] + 8 * alone[1]) / 11)


@feature("a tokenizer that was made in memory")
def _(sides: Sides) -> None:
    _, bridge = sides.boot(vocab_size=300)
    bridge.tokenizer = tokenizer()
    given = tokenizer()
    bridge.tokenizer = given
    assert bridge.tokenizer is given


@feature("an unknown keyword of `generate` is an error")
def _(sides: Sides) -> None:
    _, bridge = sides.boot()
    with pytest.raises(TypeError, match="max_tokens"):
        bridge.generate(TOKENS, max_tokens=3, stop_at_eos=False, verbose=False)


@feature("residual dropout in training")
def _(sides: Sides) -> None:
    theirs, ours, given = sides.attentions(resid_pdrop=0.3)
    found = []
    for side in (theirs.train(), ours.train()):
        torch.manual_seed(5)
        found.append(side(**given)[0])
    assert torch.equal(*found)


@feature("arguments by position, in Hugging Face's order")
def _(sides: Sides) -> None:
    _, ours, given = sides.attentions()
    given["attention_mask"] = given["attention_mask"] + torch.randn(2, 1, 9, 9).tril()
    by_position = ours(given["hidden_states"], None, given["attention_mask"], given["position_ids"])
    assert torch.equal(by_position[0], ours(**given)[0])


@feature("missing `position_ids` is an error, not an unrotated result")
def _(sides: Sides) -> None:
    _, ours, given = sides.attentions()
    with pytest.raises(ValueError, match="position_ids"):
        ours(given["hidden_states"])


@feature("a negative position is an error, not the table's last row")
def _(sides: Sides) -> None:
    _, ours, given = sides.attentions()
    with pytest.raises(ValueError, match="position_ids"):
        ours(**{**given, "position_ids": given["position_ids"] - 1})


@feature("a mask of the wrong length is an error, not cut to fit")
def _(sides: Sides) -> None:
    _, ours, given = sides.attentions()
    with pytest.raises(ValueError, match="attention_mask"):
        ours(**{**given, "attention_mask": torch.zeros(2, 1, 9, 12)})


@feature("a 2D mask of ones and zeros hides padding")
def _(sides: Sides) -> None:
    theirs, ours, given = sides.attentions()
    tokens = torch.ones(2, 9, dtype=torch.long)
    tokens[1, :3] = 0
    padded = given["attention_mask"].masked_fill(tokens[:, None, None] == 0, torch.finfo(torch.float32).min)
    expected = theirs(**{**given, "attention_mask": padded})[0]
    torch.testing.assert_close(ours(**{**given, "attention_mask": tokens})[0], expected)


@feature("an edit of the fused weight after boot is noticed")
def _(sides: Sides) -> None:
    _, ours, given = sides.attentions()
    ours.original_component.qkv_proj.weight.mul_(2)
    with pytest.warns(UserWarning, match="refresh"):
        ours(**given)


@feature("heads that do not fill the four partitions are an error")
def _(sides: Sides) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sides.boot(n_head=6, n_embd=48)


@feature("a bridge with no more parameters than the model")
def _(sides: Sides) -> None:
    model, bridge = sides.boot()
    if hasattr(bridge.blocks[0].attn, "drop_fused"):
        for block in bridge.blocks:
            block.attn.drop_fused()
    assert sum(p.numel() for p in bridge.parameters()) == sum(p.numel() for p in model.parameters())
    assert bridge(TOKENS).isfinite().all()


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_our_bridge_has_the_feature(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FEATURES[name](Sides(CodeGenAdapter))


@needs_upstream
@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_upstream_lacks_the_feature(name: str) -> None:
    """If this fails, upstream has the feature now: update docs/bridge-compared.md."""
    failed = (AssertionError, RuntimeError, KeyError, TypeError, ValueError, IndexError, pytest.fail.Exception)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(failed):
            FEATURES[name](Sides(CodeGenArchitectureAdapter))


def test_table_in_the_docs_has_a_row_per_feature() -> None:
    page = (Path(__file__).parents[2] / "docs" / "bridge-compared.md").read_text()
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    assert set(FEATURES) <= rows
