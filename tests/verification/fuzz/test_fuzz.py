"""`cgverify fuzz`: a fault that few inputs show is found, shrunk and kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from itertools import combinations, islice, pairwise, product
from pathlib import Path

import pytest
from command_line import Cli
from transformers import CodeGenConfig

from cgverify.checkpoint.resolve import resolve
from cgverify.common.records import Cell, CellResult, Verdict
from cgverify.report.formats import render_run
from cgverify.runs.baseline import load_stored_run
from cgverify.verification.fuzz import Call, replay
from cgverify.verification.fuzz.calls import CallMaker
from cgverify.verification.fuzz.drawing import FIELDS, examples, sizes
from cgverify.verification.fuzz.hunt import subjects_of
from cgverify.verification.fuzz.shrinking import shrink, size
from cgverify.verification.fuzz.subject import Subject, in_fork, target

SEEDED = "cgverify.selftest.seeded"
FAULT = f"{SEEDED}.sizes:BatchTakenForTokens"


def subject(kind: str, bridge: str = "cgverify", dtype: str = "float32") -> tuple[Subject, Cell]:
    source = resolve("codegen-nano")
    cell = target(source, "codegen-nano", bridge, kind, dtype)
    (booted,) = subjects_of(source, [cell]).values()
    return booted, cell


def failing(result: CellResult) -> set[str]:
    return {one.step for one in result.findings if one.verdict.fails}


def test_sequence_is_judged_call_by_call() -> None:
    held, wrong = Call(batch=2, tokens=3), Call(batch=2, tokens=2)
    own = replay("codegen-nano", "cgverify", "attn", "float32", [held, wrong, held])
    assert not own.verdict.fails, own.blame
    result = replay("codegen-nano", FAULT, "attn", "float32", [held, wrong])
    assert failing(result) == {"call 2"}
    assert result.blame.startswith("mix breaks first, at hook_z")


FAILING = {
    "event": (f"{SEEDED}.state:DeafAfterAnError", "attn", [Call(batch=2, tokens=4, event="a hook raised")]),
    "edited": (
        f"{SEEDED}.state:mlp_result_of_same_tensor",
        "mlp",
        [Call(batch=2, tokens=4, event="inputs were edited in place")],
    ),
    "fixed": (f"{SEEDED}.caches:EmptySlotsShown", "attn", [Call(tokens=3, cache="fixed")]),
    "reordered": (
        f"{SEEDED}.caches:ReorderedBeamsUnseen",
        "attn",
        [Call(batch=2, tokens=3, cache="one"), Call(batch=2, cache="one", use="reordered")],
    ),
    "cropped": (
        f"{SEEDED}.caches:CroppedKeysReturn",
        "attn",
        [Call(batch=2, tokens=3, cache="one"), Call(batch=2, cache="one", use="cropped")],
    ),
    "quiet": (f"{SEEDED}.caches:CacheIgnoredUnlessUsed", "block", [Call(tokens=3, cache="one", use="quiet")]),
    "nan": (f"{SEEDED}.data:NotANumberBecomesZero", "attn", [Call(tokens=3, values="nan")]),
    "begun": (f"{SEEDED}.data:RowsLikeTheFirst", "attn", [Call(batch=2, tokens=3, values="begun")]),
    "a first token": (
        f"{SEEDED}.state:embedding_kept_by_first_token",
        "embed",
        [Call(tokens=3, values="begun"), Call(tokens=3, values="begun", seed=1)],
    ),
    "token 0": (
        f"{SEEDED}.gradients:no_gradient_for_token_0",
        "embed",
        [Call(tokens=3, values="begun", mode="backward")],
    ),
    "gradients": (f"{SEEDED}.gradients:final_gain_frozen", "ln_final", [Call(tokens=2, mode="backward")]),
    "strided": (f"{SEEDED}.data:ReadByAddress", "attn", [Call(batch=2, tokens=3, strided=True)]),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_a_call_has_shows_a_fault(name: str) -> None:
    bridge, kind, calls = FAILING[name]
    booted, cell = subject(kind, bridge)
    assert failing(booted.judge(cell, calls).result) == {f"call {len(calls)}"}
    usual = {"event": "", "strided": False, "values": "normal", "use": "usual", "mask": "causal", "mode": "plain"}
    plain = [call.model_copy(update={**usual, "cache": call.cache and "one"}) for call in calls]
    booted, cell = subject(kind, bridge)
    assert not booted.judge(cell, plain).fails
    own, cell = subject(kind)
    assert not own.judge(cell, calls).fails


def test_quick_judgement_finds_what_the_full_one_finds() -> None:
    calls = [Call(batch=2, tokens=4, mode="patched", variant=variant) for variant in range(4)]
    calls += [Call(tokens=3, cache="one", mode="autocast"), Call(batch=3, tokens=3)]
    booted, cell = subject("attn", FAULT)
    quick, full = (one.result for one in (booted.judge(cell, calls), booted.explain(cell, calls)))
    assert failing(quick) == failing(full) == {"call 6"}
    assert not any(one.verdict is Verdict.BITWISE for one in quick.findings)


def test_call_is_settled_without_what_has_no_effect() -> None:
    booted, cell = subject("attn.q")
    maker = booted.prepare(cell)
    call = Call(cache="one", event="a hook raised", mode="gated", mask="soft", strided=True)
    assert maker.settled([call]) == (Call(),)
    assert ("project_q", "hook_out") in booted.judge(cell, [call]).equal


def test_sizes_of_heads_and_around_powers_are_drawn() -> None:
    drawn = {*sizes(CodeGenConfig(n_head=8, n_embd=192))}
    assert {(8, 8), (1, 24), (2, 23), (1, 15), (2, 129), (1, 257)} <= drawn


Feature = tuple[str, object]


def features_of(call: Call) -> set[Feature]:
    return {(name, getattr(call, name)) for name in (*FIELDS, "mode")}


def pairs_of(call: Call) -> set[frozenset[Feature]]:
    return {frozenset(pair) for pair in combinations(features_of(call), 2)}


def possible_pairs(maker: CallMaker) -> set[frozenset[Feature]]:
    """Return the pairs of features that a call can have, with or without a cache that earlier calls have filled."""
    values = [(name, value) for name, own in FIELDS.items() for value in own]
    values += [("mode", mode) for mode in maker.conditions]
    possible: set[frozenset[Feature]] = set()
    for (one, other), batch, cache in product(combinations(values, 2), (1, 2), ("", "one")):
        call = Call.model_validate({"batch": batch, "tokens": 3 - batch, "cache": cache} | dict([one, other]))
        for asked in (call, call.model_copy(update={"tokens": 3})):
            placed = maker.placed(asked, defaultdict(lambda: 5))
            assert placed is not None
            possible |= pairs_of(placed.call)
    return possible


@pytest.mark.parametrize(("kind", "most_missing"), [("attn", 0.05), ("block", 0.05), ("embed", 0.01)])
def test_features_and_pairs_come_early(kind: str, most_missing: float) -> None:
    booted, cell = subject(kind)
    maker = booted.prepare(cell)
    drawn = {call for example in islice(examples({cell: maker}, seed=0), 32) for call in example.calls}
    missing = {(mode, at) for mode, own in maker.conditions.items() for at in range(len(own))}
    assert not missing - {(call.mode, call.variant) for call in drawn}
    possible = possible_pairs(maker)
    pairs = possible - {pair for call in drawn for pair in pairs_of(call)}
    assert len(pairs) <= most_missing * len(possible), pairs


def test_forwards_of_a_hook_come_in_one_sequence() -> None:
    booted, cell = subject("block")
    maker = booted.prepare(cell)
    taps = [one.patch.tap if one.patch else "" for one, _ in maker.conditions["patched"]]
    once, in_settings = (at for at, tap in enumerate(taps) if tap == "hook_mlp_in")
    sequences = (example.calls for example in islice(examples({cell: maker}, seed=0), 24))
    orders = [[call.variant for call in calls if call.mode == "patched"] for calls in sequences]
    assert any(in_settings in order and once in order[: order.index(in_settings)] for order in orders)


def test_drawn_calls_are_settled_and_repeat_others() -> None:
    booted, cell = subject("attn")
    maker = booted.prepare(cell)
    for example in islice(examples({cell: maker}, seed=0), 5):
        assert maker.settled(example.calls) == example.calls
        assert len(example.calls) > 20
        assert len({call.plainly for call in example.calls}) < len(example.calls)


SHRUNK = {
    "a pair of sizes": (
        lambda calls: any(call.batch == call.tokens > 1 for call in calls),
        [Call(batch=2, tokens=2)],
    ),
    "a threshold": (
        lambda calls: any(call.tokens > 17 and call.mask == "soft" for call in calls),
        [Call(tokens=18, mask="soft")],
    ),
    "a cache": (
        lambda calls: any(
            one.batch == other.batch > 1 and one.cache == other.cache == "one" and other.use == "reordered"
            for one, other in pairwise(calls)
        ),
        [Call(batch=2, cache="one"), Call(batch=2, cache="one", use="reordered")],
    ),
    "other tensors": (
        lambda calls: any(one.tokens == other.tokens > 2 and one.seed != other.seed for one, other in pairwise(calls)),
        [Call(tokens=3, seed=0), Call(tokens=3, seed=512)],
    ),
}


@pytest.mark.parametrize("name", SHRUNK)
def test_sequence_is_shrunk_to_the_smallest(name: str) -> None:
    fails, smallest = SHRUNK[name]
    booted, cell = subject("attn")
    maker = booted.prepare(cell)
    found = next(example.calls for example in examples({cell: maker}, seed=0) if fails(example.calls))
    tried: list[tuple[Call, ...]] = []

    def until_failure(calls: tuple[Call, ...]) -> tuple[Call, ...]:
        tried.append(calls)
        return calls if fails(calls) else ()

    shrunk = shrink(found, until_failure, maker.settled, lambda: False)
    assert size(shrunk) <= size(tuple(smallest)), shrunk
    assert len(tried) < 400
    assert shrink(found, until_failure, maker.settled, lambda: True) == found


def test_candidate_that_ends_its_process_fails() -> None:
    _, cell = subject("ln1")
    assert in_fork(lambda: os._exit(3), cell, [Call()]).fails
    killed = in_fork(lambda: os.kill(os.getpid(), signal.SIGKILL), cell, [Call()])  # type: ignore[arg-type, return-value]
    assert killed.error, "the system kills what takes too much memory"


@pytest.mark.parametrize("fault", [f"{SEEDED}.mixing:HeadsSwapped", pytest.param(FAULT, marks=pytest.mark.slow)])
def test_fault_is_found_shrunk_and_tried_first(cli: Cli, tmp_path: Path, fault: str) -> None:
    asked = ("fuzz", "--component", "attn", "--output", "kept", "--jobs", "1")
    found = cli(*asked, "--bridge", fault, "--minutes", "4")
    assert found.returncode == 1, found.stderr
    assert f"--bridge {fault} --component blocks.0.attn --dtype float32 --seed 0 --output kept" in found.stdout
    kept = tmp_path / "kept"
    (call,) = json.loads((kept / "counterexample.json").read_text())["calls"]
    assert call["batch"] == call["tokens"] == (2 if fault == FAULT else 1), "no smaller call shows it"
    assert "call 1,hook_z,mix,diverged" in (kept / "findings.csv").read_text()
    snippet = subprocess.run([sys.executable, kept / "counterexample.py"], capture_output=True, text=True)
    assert snippet.stdout.startswith("diverged mix breaks first"), snippet.stderr
    again = cli(*asked, "--bridge", fault, "--format", "json")
    assert again.returncode == 1
    settings = json.loads(again.stdout)["run"]["settings"]
    assert settings["covered"] == "0 sequences of 0 calls, 0 shapes", "the kept one is tried first"
    assert settings["counterexample"]["calls"] == [f"call 1: batch {call['batch']}, tokens {call['tokens']}"]
    mended = cli(*asked, "--minutes", "0")
    assert mended.returncode == 0, f"the kept sequence is tried on the bridge that was asked for: {mended.stdout}"
    assert "1 sequences of 1 calls" in mended.stdout
    assert (kept / "counterexample.json").exists(), "it stays until there is another"
    stored = load_stored_run(kept)
    for format in ("html", "junit", "markdown", "github", "csv"):
        assert render_run(format, stored.run, stored.results)


def test_attention_and_block_of_the_last_layer_are_hunted(cli: Cli, tmp_path: Path) -> None:
    assert cli("fuzz", "--minutes", "0", "--output", "kept").returncode == 5
    planned = [json.loads(line)["cell"] for line in (tmp_path / "kept" / "plan.jsonl").read_text().splitlines()]
    assert {(cell["layer"], cell["kind"]) for cell in planned} >= {(0, "attn"), (0, "mlp"), (4, "attn"), (4, "block")}


def test_failure_that_cannot_be_repeated_is_no_success(cli: Cli, tmp_path: Path) -> None:
    raised = tmp_path / "raised"
    done = cli(
        *("fuzz", "--bridge", "raising:RaisesOnce", "--component", "attn", "--minutes", "0.2", "--jobs", "1"),
        *("--output", "kept"),
        RAISED=str(raised),
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "and not when the same calls were repeated" in done.stderr
    assert (tmp_path / "kept" / "counterexample.json").exists()


def test_folder_with_another_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    refused = cli("fuzz", "--output", "kept", "--minutes", "0")
    assert refused.returncode == 2
    assert "not empty" in refused.stderr
    assert [entry.name for entry in (tmp_path / "kept").iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_own_bridge_holds_for_some_seconds(cli: Cli) -> None:
    done = cli("fuzz", "--minutes", "0.1", "--dtype", "float32,bfloat16", "--output", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sequences of" in done.stdout
