"""`cgverify bench`: time and memory of bridges, compared with Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from cgverify.bench.baseline import FILE, ScenarioChange, changes, over, read, regressions
from cgverify.bench.records import BenchRun, Measured, Point
from cgverify.bench.scenarios import COMPONENTS, SCENARIOS, Selection, Shape
from cgverify.cli import options
from cgverify.cli.command import INTERRUPTED, command
from cgverify.cli.options import format_option, known, option, split
from cgverify.common.environment import hush_libraries, keep_memory, machine, pin_numerics, uncollected, versions
from cgverify.common.errors import RunFolderError, UsageError
from cgverify.common.streams import stdout_is_ours
from cgverify.plan.cells import DEVICES, DTYPES

if TYPE_CHECKING:
    from cgverify.bench.harness import Harness

FORMATS = ("table", "json", "csv", "html")
MEMORY = ("fresh", "kept")
FAILED, NOTHING_MEASURED = 1, 5

what = partial(option, panel="What to measure")
how = partial(option, panel="How to measure")

Scenarios = Annotated[list[str] | None, what("scenario", f"{', '.join(SCENARIOS)}; or all.")]
Components = Annotated[list[str] | None, what("component", f"{', '.join(COMPONENTS)}; or all.")]
Shapes = Annotated[list[str] | None, what("shape", "BATCHxTOKENS, or 1x1+1000 with a cache.")]
Seconds = Annotated[float, how("seconds", "Time limit of one comparison, in seconds.", min=0.0)]
Width = Annotated[
    float, how("width", "Stop a comparison when the relative width of its ratio's interval is below this.", min=0.0)
]
Memory = Annotated[
    str,
    how(
        "memory",
        "fresh returns freed memory to the system and pays for new memory, as any process does. kept keeps it, so that "
        "only arithmetic is measured.",
    ),
]
Baseline = Annotated[Path | None, how("baseline", f"An earlier {FILE} of this machine to compare with.")]
From = Annotated[Path | None, how("from", f"Measure nothing, and report on this {FILE}.")]
FailOver = Annotated[
    float | None,
    how(
        "fail-over",
        "Exit with 1 if a ratio is certainly above this; with --baseline, if it grew by more than this factor.",
        min=0.0,
    ),
]
Format = Annotated[str, format_option(FORMATS, "How to measure")]


@command
def bench(
    *,
    model: options.Model = "codegen-350M",
    weights: options.Weights = "auto",
    bridge: options.Bridge = ["cgverify"],
    dtype: options.Dtype = ["float32"],
    device: options.Device = ["cpu"],
    scenario: Scenarios = None,
    component: Components = None,
    shape: Shapes = None,
    seconds: Seconds = 8.0,
    width: Width = 0.02,
    memory: Memory = "fresh",
    threads: options.Threads = None,
    baseline: Baseline = None,
    measured: From = None,
    fail_over: FailOver = None,
    output: options.Output = None,
    format: Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Measure time and memory of bridges and of Hugging Face, in pairs, in one process, on the same inputs.

    Without --scenario, --component and --shape, a selection that takes minutes is measured; --scenario all measures
    everything.

    Exit codes: 0 measured, 1 above --fail-over, 2 bad usage, 3 something could not be run, 5 nothing was measured,
    130 interrupted.
    """
    selection = Selection(
        scenarios=_chosen("scenario", scenario, SCENARIOS),
        components=_chosen("component", component, COMPONENTS),
        shapes=[Shape.parse(text) for text in split(shape)],
        dtypes=known("dtype", split(dtype), DTYPES),
        devices=known("device", split(device), DEVICES),
    )
    known("format", [format], FORMATS)
    known("memory", [memory], MEMORY)
    before = None if baseline is None else read(baseline)
    interrupted = False
    if measured is not None:
        run = read(measured)
    else:
        if verbose == 0:
            hush_libraries()
        run, interrupted = _measure(
            model, weights, split(bridge), selection, memory, threads, seconds, width, output, quiet
        )
    compared = [] if before is None else changes(before, run)
    _print(run, compared, format)
    if interrupted:
        return INTERRUPTED
    if fail_over is not None:
        found = over(run.measured, fail_over) if before is None else regressions(compared, fail_over)
        for sentence in found:
            typer.echo(f"over the limit: {sentence}", err=True)
        if found:
            return FAILED
    return NOTHING_MEASURED if all(each.message for each in run.measured) else 0


def _chosen(kind: str, given: list[str] | None, names: Iterable[str]) -> list[str]:
    names = list(names)
    asked = split(given)
    return names if asked == ["all"] else known(kind, asked, names) if given else []


def _measure(
    model: str,
    weights: str,
    bridges: list[str],
    selection: Selection,
    memory: str,
    threads: int | None,
    seconds: float,
    width: float,
    output: Path | None,
    quiet: bool,
) -> tuple[BenchRun, bool]:
    """Measure, write the files, and return the benchmark and whether it was interrupted."""
    if not bridges:
        raise UsageError("--bridge names nothing: give cgverify, transformer_lens, or module:name.")
    if memory == "kept":
        keep_memory()
    with uncollected():
        import torch

        from cgverify.bench.harness import Harness
        from cgverify.bench.timing import Limits, product_rate
        from cgverify.checkpoint.resolve import resolve
        from cgverify.observe.candidate import find_candidate
        from cgverify.verification.checkpoint_verifier import require_devices

    require_devices(selection.devices)
    with stdout_is_ours():
        candidates = {name: find_candidate(name) for name in bridges}
    source = resolve(model, weights)
    points = selection.points(source.config.n_positions)
    numerics = pin_numerics(threads or torch.get_num_threads()) | {"memory": memory}
    folder = _new_folder(output, model)
    if not quiet:
        typer.echo(
            f"{model}, weights {source.origin}: {len(points)} points, up to {seconds:g} s each. {folder}", err=True
        )
    rates = {
        f"{dtype} {device}": product_rate(getattr(torch, dtype), torch.device(device))
        for dtype in selection.dtypes
        for device in selection.devices
    }
    harness = Harness(model, weights, source, candidates, numerics["threads"], Limits(width, seconds))
    results, interrupted = _results(harness, points, quiet)
    run = BenchRun(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        weights_origin=source.origin,
        weights_digest=source.digest,
        settings={"bridge": bridges, "seconds": seconds, "width": width, "weights": weights},
        environment={"versions": versions(), "machine": machine(), "numerics": numerics},
        product_rates=rates,
        measured=tuple(results),
    )
    _write(folder, run)
    return run, interrupted


def _results(harness: Harness, points: Sequence[Point], quiet: bool) -> tuple[list[Measured], bool]:
    """Return what was measured before the end or an interruption. Show a progress bar if stderr is a terminal."""
    console = Console(stderr=True)
    results: list[Measured] = []
    with stdout_is_ours():
        progress = track(
            harness.measure(points),
            "measuring",
            total=len(points),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        try:
            for found in progress:
                results += found
        except KeyboardInterrupt:
            return results, True
    return results, False


def _new_folder(output: Path | None, model: str) -> Path:
    """Make the folder for the files before anything is measured, so that a wrong path costs no time."""
    name = Path(model).resolve().name if Path(model).is_dir() else model.replace("/", "--")
    path = output or Path("reports") / f"bench-{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    try:
        if path.exists() and any(path.iterdir()):
            raise RunFolderError(f"{path} exists and is not empty: give another --output.")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"Cannot write to {path}: {error.strerror}. Give another --output.") from error
    return path


def _write(folder: Path, run: BenchRun) -> None:
    from cgverify.bench import page as bench_page
    from cgverify.bench.table import bench_frame

    (folder / FILE).write_text(run.model_dump_json(indent=1) + "\n", encoding="utf-8")
    bench_frame(run).to_csv(folder / "bench.csv", index=False)
    (folder / "bench.html").write_text(bench_page.render(run), encoding="utf-8")


def _print(run: BenchRun, compared: Sequence[ScenarioChange], format: str) -> None:
    from cgverify.bench import page as bench_page
    from cgverify.bench import table as bench_table
    from cgverify.bench.table import bench_frame
    from cgverify.report.sections import on_screen

    if format == "json":
        typer.echo(run.model_dump_json())
    elif format == "csv":
        typer.echo(bench_frame(run).to_csv(index=False), nl=False)
    elif format == "html":
        typer.echo(bench_page.render(run, compared))
    else:
        typer.echo(on_screen(bench_table.sections(run, compared)), nl=False)
