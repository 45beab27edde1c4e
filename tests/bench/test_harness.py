"""Measuring codegen-nano briefly: what runs, and what is reported. No measured time is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from hugging_face import TABLE_PER_MODEL
from torch import nn

from cgverify.bench import calls, peak_memory, timing
from cgverify.bench.harness import Harness
from cgverify.bench.models import Models, load_models, reference_module
from cgverify.bench.peak_memory import MemoryRequest, PeakError
from cgverify.bench.records import Measured, Point
from cgverify.bench.scenarios import SCENARIOS, Scenario, Selection, Shape
from cgverify.bench.timing import Limits
from cgverify.checkpoint.resolve import resolve
from cgverify.checkpoint.source import Source
from cgverify.checkpoint.window import ModelVariant
from cgverify.observe.candidate import find_candidate
from cgverify.observe.taps import hook_points

BRIDGES = ("cgverify", "faults:HeadsSwapped")


@pytest.fixture(scope="module")
def source() -> Source:
    return resolve("codegen-nano")


@pytest.fixture(scope="module")
def models(source: Source) -> Models:
    variant = ModelVariant(torch.float32, torch.device("cpu"), source.config.rotary_dim)
    return load_models(source, variant, "block", {name: find_candidate(name) for name in BRIDGES})


def measure(source: Source, points: Sequence[Point], bridges: Sequence[str] = BRIDGES) -> list[Measured]:
    harness = Harness(
        "codegen-nano",
        "auto",
        source,
        {name: find_candidate(name) for name in bridges},
        torch.get_num_threads(),
        Limits(seconds=0),
    )
    return [each for found in harness.measure(points) for each in found]


def test_every_scenario_of_components_and_model_has_figures(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SHORTEST", 0.0)
    here = [name for name in SCENARIOS if not name.endswith("memory")]
    selection = Selection(here, ["block", "model"], [Shape(1, 1, 5)])
    monkeypatch.setitem(SCENARIOS, "generate", Scenario((), ("model",), generated=2))
    points = selection.points(512) + Selection(here, ["attn", "mlp"], [Shape(2, 3)]).points(512)
    points += Selection(["generate", "cache-all", "cache-one"], ["model"], [Shape(1, 3)]).points(512)
    found = measure(source, points, ["cgverify"])
    assert len(found) == len(points)
    assert [each.point for each in found] == points
    for each in found:
        assert not each.message, each
        assert each.ratio is not None
        assert each.low is not None
        assert each.high is not None
        assert each.low <= each.ratio <= each.high
        if each.point.batch_size:
            assert each.same_bits
            assert each.flops


def test_wrong_bridge_is_reported_by_its_bits(source: Source) -> None:
    points = Selection(["prefill"], ["attn"], [Shape(2, 9)]).points(512)
    bits = {each.candidate: each.same_bits for each in measure(source, points)}
    assert bits == {"cgverify": True, "faults:HeadsSwapped": False}


def test_candidate_that_raises_leaves_the_others_measured(source: Source) -> None:
    points = Selection(["train"], ["attn"], [Shape(2, 3)], ["bfloat16"]).points(512)
    found = {each.candidate: each for each in measure(source, points, ["raising:Raising", "cgverify"])}
    assert found["raising:Raising"].message == "raised RuntimeError: not today"
    assert found["raising:Raising"].ratio is None
    assert found["cgverify"].ratio is not None


def test_candidate_that_raises_while_timed_ends_nothing(source: Source) -> None:
    points = Selection(["prefill", "no-grad"], ["attn"], [Shape(2, 3)]).points(512)
    found = measure(source, points, ["raising:RaisingLater"])
    assert [each.message for each in found] == [
        "raised while it was timed: RuntimeError: enough",
        "raised RuntimeError: enough",
    ]


def test_unbootable_candidate_is_a_row_in_every_scenario(source: Source) -> None:
    points = Selection(["prefill", "boot", "parameters"], ["block"]).points(16)
    found = measure(source, points, ["raising:unbootable"])
    assert {each.point.scenario for each in found} == {"prefill", "boot", "parameters"}
    assert {each.message for each in found} == {"raised OSError: no boot"}


def test_parameter_bytes_are_those_of_the_modules(source: Source) -> None:
    (ours,) = measure(source, Selection(["parameters"], ["attn"]).points(512), ["cgverify"])
    width = source.config.n_embd
    table = 0 if TABLE_PER_MODEL else source.config.n_positions * source.config.rotary_dim
    assert ours.reference == 4 * (4 * width**2 + table)
    assert ours.value is not None
    assert ours.value - ours.reference == pytest.approx(4 * 3 * width**2, abs=4 * table + 64)


LONG = Selection(["memory"], ["attn"], [Shape(2, 512)]).points(512)


def require_peak_of_scores(peak: float | None, source: Source) -> None:
    scores = 4 * 2 * source.config.n_head * 512**2
    assert peak is not None
    assert scores < peak < 20 * scores


def test_peak_memory_is_reported_in_bytes(source: Source) -> None:
    require_peak_of_scores(peak_memory.in_fresh_process(memory_request(LONG[0], "cgverify")), source)


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_fresh_process(source: Source) -> None:
    (found,) = measure(source, LONG, ["cgverify"])
    for peak in (found.value, found.reference):
        require_peak_of_scores(peak, source)


def test_fresh_process_that_fails_reports_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (point,) = Selection(["memory"], ["attn"], [Shape(2, 8)]).points(512)
    monkeypatch.setattr("sys.argv", ["peak_memory", memory_request(point, "raising:Raising").model_dump_json()])
    peak_memory.main()
    assert json.loads(capsys.readouterr().out) == {"message": "RuntimeError: not today"}


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('print(\'{"message": "no room"}\')', "no room"),
        ("import sys; sys.exit('killed')", "the fresh process failed: killed"),
        ("", "the fresh process failed: exit code 0"),
    ],
)
def test_message_of_a_failed_process_is_passed_on(script: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **how: run([sys.executable, "-c", script], **how))
    with pytest.raises(PeakError, match=message):
        peak_memory.in_fresh_process(memory_request(at("memory"), None))


def memory_request(point: Point, candidate: str | None) -> MemoryRequest:
    return MemoryRequest(point=point, model="codegen-nano", weights="auto", candidate=candidate, threads=1)


def at(scenario: str, **changes: object) -> Point:
    given = {"component": "attn", "scenario": scenario, "dtype": "float32", "device": "cpu"}
    return Point.model_validate({**given, "batch_size": 2, "seq_len": 4, **changes})


def module(models: Models) -> nn.Module:
    found: nn.Module = models.of_candidate("cgverify", "attn")
    return found


def test_decoding_starts_with_the_same_cache_each_time(models: Models) -> None:
    point = at("decode", seq_len=1, cached=7)
    inputs = calls.inputs_of(point, models.config)
    assert inputs["attention_mask"].shape == (2, 1, 1, 8)
    assert inputs["position_ids"].tolist() == [[7], [7]]
    for side in (reference_module(models.reference, "attn"), module(models)):
        run = calls.forward_of(side, models.reference, point, inputs, models.config)
        with calls.autograd_mode(point):
            first, again = run(), run()
        assert first[1].shape[-1] == 8
        assert torch.equal(first[0], again[0])


def test_training_has_gradients_and_removes_them(models: Models) -> None:
    point = at("train")
    inputs = calls.inputs_of(point, models.config)
    attention = module(models)
    with calls.autograd_mode(point), calls.prepared(attention, point):
        assert attention.training
        calls.forward_of(attention, models.reference, point, inputs, models.config)()
        assert attention.get_submodule("q").original_component.weight.grad is not None
    assert not attention.training
    assert all(weight.grad is None and not weight.requires_grad for weight in attention.parameters())


def test_hooks_are_attached_only_while_measured(models: Models) -> None:
    attention = module(models)
    hooks = dict(hook_points(attention))

    def listened() -> set[str]:
        return {name for name, hook in hooks.items() if hook.fwd_hooks}

    with calls.prepared(attention, at("one-hook")):
        assert listened() == {"hook_pattern"}
    with calls.prepared(attention, at("all-hooks")):
        assert listened() == set(hooks)
    with calls.prepared(attention, at("prefill")):
        assert listened() == set()
    assert listened() == set()
