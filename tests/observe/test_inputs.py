"""Matched inputs: reproducible, equal in every dtype, and changed where random ones hide bugs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CodeGenConfig

from cgverify.observe.cases import CASES
from cgverify.observe.components import COMPONENTS
from cgverify.observe.inputs import (
    LOWEST,
    CaseInputs,
    InputSpec,
    RandomInputs,
    attention_inputs,
    checked_inputs,
    convert,
    draw,
    hidden_states,
    leave_unchanged,
    stress_rows,
    stress_tokens,
    token_ids,
)

SPEC = InputSpec(seed=3, batch_size=2, seq_len=8, n_positions=64, dtype=torch.float32, spread=2.0, n_heads=4)
CPU = torch.device("cpu")


def attention(case: str, spec: InputSpec = SPEC) -> CaseInputs:
    return CASES[case].build_inputs(COMPONENTS["attn"], spec, CodeGenConfig(), attention_inputs(32))


@given(seed=st.integers(0, 1000), case=st.sampled_from(["default", "stress", "decode"]))
def test_seed_gives_one_input_and_restores_global_state(seed: int, case: str) -> None:
    spec = replace(SPEC, seed=seed)
    state = torch.get_rng_state()
    first, second = attention(case, spec), attention(case, spec)
    assert first.gives_same_inputs(second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.gives_same_inputs(attention(case, replace(SPEC, seed=seed + 1)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_strided_input_has_its_strides_in_every_dtype(dtype: torch.dtype) -> None:
    step = next(step for step in attention("data", replace(SPEC, dtype=dtype)).steps if step.name == "strided")
    given = convert(step.inputs, dtype, CPU)["hidden_states"]
    assert given.dtype == dtype
    assert given.stride() == step.inputs["hidden_states"].stride()
    assert not given.is_contiguous()


def test_candidates_own_inputs_are_asked_on_cpu_in_float32() -> None:
    asked: list[Any] = []

    def own(*arguments: Any) -> dict[str, torch.Tensor]:
        asked.append(arguments)
        return {"hidden_states": torch.randn(2, 8, 4)}

    draw(checked_inputs(hidden_states(4), own), SPEC, leave_unchanged)
    assert asked == [(2, 8, CPU, torch.float32)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversion_casts_values_and_rebuilds_mask_minimum(dtype: torch.dtype) -> None:
    given = attention("stress").steps[0].inputs
    converted = convert(given, dtype, CPU)
    hidden = given["attention_mask"] == LOWEST
    assert hidden.any()
    assert (converted["attention_mask"][hidden] == torch.finfo(dtype).min).all()
    assert converted["attention_mask"].isfinite().all()
    assert torch.equal(converted["hidden_states"], given["hidden_states"].to(dtype))
    assert converted["position_ids"].dtype == torch.long


def test_rounded_inputs_equal_what_the_dtype_gets() -> None:
    built = attention("stress")
    (step,) = built.rounded_to(torch.bfloat16).steps
    for name, value in step.inputs.items():
        assert value.dtype == built.steps[0].inputs[name].dtype
    narrow = convert(built.steps[0].inputs, torch.bfloat16, CPU)
    assert torch.equal(step.inputs["hidden_states"], narrow["hidden_states"].float())
    hidden = built.steps[0].inputs["attention_mask"] == LOWEST
    assert torch.equal(step.inputs["attention_mask"] == LOWEST, hidden)
    assert not torch.equal(step.inputs["attention_mask"], built.steps[0].inputs["attention_mask"])


def test_stress_changes_what_random_inputs_hide() -> None:
    plain, stressed = attention("default").steps[0].inputs, attention("stress").steps[0].inputs
    gaps = stressed["position_ids"].diff()
    assert (gaps > 0).all()
    assert (gaps > 1).any()
    assert not torch.equal(stressed["position_ids"][0], stressed["position_ids"][1])
    mask, causal = stressed["attention_mask"], plain["attention_mask"] == LOWEST
    assert (mask[causal] == LOWEST).all()
    assert (mask[-1, :, :, :2] == LOWEST).all()  # left padding
    assert mask[mask > LOWEST].std() > 1
    assert torch.equal(stressed["hidden_states"], plain["hidden_states"] * 2.0)


def test_decode_cuts_a_sequence_into_steps_that_see_all_before() -> None:
    steps = attention("decode").steps
    assert [step.name for step in steps] == ["prefill", "token 1", "token 2", "chunk"]
    given = [step.inputs["position_ids"] for step in steps]
    assert [len(positions) for positions in given] == [2, 2, 1, 1]  # the last ones are shared by the batch
    first = torch.cat([positions[0] for positions in given])
    assert (first.diff() > 0).all()
    assert (first.diff() > 1).any()
    assert first[-1] == 63
    assert not torch.equal(*given[0])
    assert [tuple(step.inputs["attention_mask"].shape[2:]) for step in steps] == [(8, 8), (1, 9), (1, 10), (3, 13)]
    assert (steps[-1].inputs["attention_mask"][0, 0] > LOWEST).sum(-1).tolist() == [11, 12, 13]
    assert (steps[-1].inputs["attention_mask"][1, 0, :, :3] == LOWEST).all()  # left padding


def test_stressed_tokens_are_first_last_and_repeated() -> None:
    ids = draw(token_ids(50), SPEC, stress_tokens(50, [7, None]))["input_ids"]
    assert ids[0, :3].tolist() == [0, 49, 7]
    assert len(ids[:, 4:].unique()) == 1


def test_candidates_unfit_inputs_are_refused() -> None:
    contract = attention_inputs(4)

    def unfit(**changes: Any) -> RandomInputs:
        return checked_inputs(contract, lambda batch, seq, *_: {**contract(batch, seq), **changes})

    assert unfit()(2, 8)["hidden_states"].shape == (2, 8, 4)
    for changes, message in (
        ({"hidden_states": torch.zeros(2, 8, 4)}, "hidden_states is not finite and spread"),
        ({"hidden_states": torch.randn(1, 1, 4)}, "hidden_states is no"),
        ({"attention_mask": torch.zeros(2, 1, 8, 8)}, "attention_mask is not as the contract says"),
        ({"position_ids": torch.zeros(2, 8)}, "position_ids is no torch.int64"),
        ({"extra": 1}, "extra"),
    ):
        with pytest.raises(ValueError, match=message):
            unfit(**changes)(2, 8)


def test_stressed_rows_have_small_variance_offset_and_outliers() -> None:
    rows = draw(hidden_states(200), SPEC, stress_rows)["hidden_states"].flatten(0, 1)
    assert rows[0].var() < 2e-5
    assert rows[1].mean() > 29
    assert rows[2].abs().max() > 20 * rows[2].abs().median()


def test_draw_seeds_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.manual_seed` would seed every accelerator, and nothing would restore their random states."""

    def seeded(*_: object) -> None:
        pytest.fail("another device was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    monkeypatch.setattr(torch.xpu, "manual_seed_all", seeded)
    first, again = (draw(hidden_states(4), SPEC, leave_unchanged) for _ in range(2))
    assert torch.equal(first["hidden_states"], again["hidden_states"])
