"""`cgverify bench`: output, files and exit codes. No measured time is judged here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from hand_made_bench import measured, run
from typer.testing import CliRunner, Result

from cgverify.bench.baseline import read
from cgverify.bench.harness import Harness
from cgverify.cli.app import app

QUICK = ("--model", "codegen-nano", "--scenario", "prefill", "--component", "attn", "--shape", "1x4", "--seconds", "0")


def bench(*arguments: str) -> Result:
    """Run the command in this process, where torch is already imported."""
    return CliRunner().invoke(app, ["bench", *arguments])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_process_prints_a_table_and_writes_three_files(cli: Cli, tmp_path: Path) -> None:
    done = cli("bench", *QUICK, "--bridge", "cgverify,raising:Raising", "--threads", "1", "--output", "out")
    assert done.returncode == 0, done.stderr
    assert "attn prefill 1x4" in done.stdout
    assert "raising:Raising, attn prefill 1x4 float32 cpu: raised RuntimeError: not today" in done.stdout
    assert "codegen-nano (shipped): 1 points" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"bench.json", "bench.csv", "bench.html"}
    found = read(tmp_path / "out")
    assert found.environment["numerics"]["threads"] == 1
    assert found.environment["machine"]["processor"]
    assert found.product_rates["float32 cpu"] > 0
    assert found.environment["numerics"]["memory"] == "fresh"
    assert "1 threads, memory fresh" in done.stdout
    ours, raising = found.measured
    assert ours.same_bits
    assert ours.rounds >= 6
    assert raising.message


def test_every_format_is_printed(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(run(measured(1.0)).model_dump_json())
    out = {name: bench("--from", ".", "--format", name) for name in ("table", "json", "csv", "html")}
    assert all(result.exit_code == 0 for result in out.values())
    assert json.loads(out["json"].stdout)["measured"][0]["ratio"] == 1.0
    assert out["csv"].stdout.startswith("model,component,scenario")
    assert out["html"].stdout.startswith("<!doctype html>")
    assert "1.000" in out["table"].stdout


@pytest.mark.parametrize(
    ("ratio", "options", "code"),
    [
        (1.2, (), 0),
        (1.2, ("--fail-over", "1.05"), 1),
        (1.04, ("--fail-over", "1.05"), 0),
        (1.2, ("--baseline", "base.json", "--fail-over", "1.05"), 1),
        (1.0, ("--baseline", "base.json", "--fail-over", "1.05"), 0),
        (None, (), 5),
    ],
)
def test_fail_over_decides_the_exit_code(
    ratio: float | None, options: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    (tmp_path / "base.json").write_text(run(measured(1.0)).model_dump_json())
    (tmp_path / "now.json").write_text(run(measured(ratio, message="" if ratio else "raised")).model_dump_json())
    result = bench("--from", "now.json", *options)
    assert result.exit_code == code, result.output
    assert ("over the limit: cgverify, attn prefill" in result.stderr) == (code == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scenario", "prefil"), "did you mean 'prefill'"),
        (("--component", "attm"), "did you mean 'attn'"),
        (("--shape", "8"), "BATCHxTOKENS"),
        (("--shape", "1x9999"), "512 positions"),
        (("--scenario", ","), "names nothing"),
        (("--bridge", ","), "names nothing"),
        (("--bridge", "nowhere:Bridge"), "No module named 'nowhere'"),
        (("--format", "xml"), "Unknown --format 'xml'"),
        (("--memory", "keep"), "did you mean 'kept'"),
        (("--baseline", "nowhere.json"), "Cannot read nowhere.json"),
        (("--from", "nowhere.json"), "Cannot read nowhere.json"),
        (("--output", "."), "exists and is not empty"),
        (("--output", "/proc/nowhere"), "Cannot write"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "something").write_text("")
    result = bench("--model", "codegen-nano", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_baseline_with_other_memory_exits_with_2(cli: Cli) -> None:
    done = cli("bench", *QUICK, "--threads", "1", "--memory", "kept", "--output", "kept")
    assert done.returncode == 0, done.stderr
    assert "1 threads, memory kept" in done.stdout
    kept = read(Path("kept"))
    now = {**kept.environment, "numerics": {**kept.environment["numerics"], "memory": "fresh"}}
    Path("now.json").write_text(kept.model_copy(update={"environment": now}).model_dump_json())
    result = bench("--from", "now.json", "--baseline", "kept")
    assert result.exit_code == 2
    assert "(memory kept, here fresh)" in result.stderr


def test_interrupted_benchmark_keeps_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Harness.measure

    def torn(self: Harness, points: Any) -> Iterator[Any]:
        yield next(whole(self, points))
        raise KeyboardInterrupt

    monkeypatch.setattr(Harness, "measure", torn)
    result = bench(*QUICK, "--output", "out", "-q")
    assert result.exit_code == 130
    assert len(read(Path("out")).measured) == 1
    assert "attn prefill 1x4" in result.stdout
