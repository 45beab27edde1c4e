"""`cgverify bench`: what a bridge costs beside Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from cgverify.bench.baseline import FILE, ScenarioChange, changes, over, read, regressions
from cgverify.bench.records import BenchRun, Measured, Point
from cgverify.bench.scenarios import COMPONENTS, SCENARIOS, Selection, Shape
from cgverify.cli import options
from cgverify.cli.exits import INTERRUPTED, exit_codes
from cgverify.cli.options import known, split
from cgverify.common.environment import hush_libraries, keep_memory, machine, pin_numerics, uncollected, versions
from cgverify.common.errors import RunFolderError, UsageError
from cgverify.common.streams import stdout_is_ours
from cgverify.plan.cells import DEVICES, DTYPES

if TYPE_CHECKING:
    from cgverify.bench.harness import Harness

FORMATS = ("table", "json", "csv", "html")
FAILED, NOTHING_MEASURED = 1, 5

_WHAT, _HOW = "What to measure", "How to measure"

Scenarios = Annotated[
    list[str] | None,
    typer.Option(help=f"{', '.join(SCENARIOS)}; or all.", envvar="CGVERIFY_SCENARIO", rich_help_panel=_WHAT),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(help="BATCHxTOKENS, or 1x1+1000 with a cache.", envvar="CGVERIFY_SHAPE", rich_help_panel=_WHAT),
]
Components = Annotated[
    list[str] | None,
    typer.Option(help=f"{', '.join(COMPONENTS)}; or all.", envvar="CGVERIFY_COMPONENT", rich_help_panel=_WHAT),
]
Seconds = Annotated[
    float,
    typer.Option(min=0.0, help="Time limit of one comparison.", envvar="CGVERIFY_SECONDS", rich_help_panel=_HOW),
]
Width = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Relative width of a ratio's interval at which its comparison stops.",
        envvar="CGVERIFY_WIDTH",
        rich_help_panel=_HOW,
    ),
]
MEMORY = ("fresh", "kept")
Memory = Annotated[
    str,
    typer.Option(
        help="fresh: large tensors cost what the system takes to give memory anew, as in any process; kept: nothing is "
        "given back, and what is left is arithmetic.",
        envvar="CGVERIFY_MEMORY",
        rich_help_panel=_HOW,
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        help=f"An earlier {FILE} of this machine to compare with.", envvar="CGVERIFY_BASELINE", rich_help_panel=_HOW
    ),
]
Measured_ = Annotated[
    Path | None,
    typer.Option(
        "--from", help=f"Measure nothing: report on this {FILE}.", envvar="CGVERIFY_FROM", rich_help_panel=_HOW
    ),
]
FailOver = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Exit 1 where a ratio is surely over this; with --baseline, where it grew by more than this factor.",
        envvar="CGVERIFY_FAIL_OVER",
        rich_help_panel=_HOW,
    ),
]
Format = Annotated[
    str, typer.Option(help=f"On stdout: {', '.join(FORMATS)}.", envvar="CGVERIFY_FORMAT", rich_help_panel=_HOW)
]


def bench(
    model: options.Model = "codegen-350M",
    weights: options.Weights = "auto",
    bridge: options.Bridge = ["cgverify"],  # noqa: B006  typer wants the default as a list
    dtype: options.Dtype = ["float32"],  # noqa: B006
    device: options.Device = ["cpu"],  # noqa: B006
    scenario: Scenarios = None,
    component: Components = None,
    shape: Shapes = None,
    seconds: Seconds = 8.0,
    width: Width = 0.02,
    memory: Memory = "fresh",
    threads: options.Threads = None,
    baseline: Baseline = None,
    measured: Measured_ = None,
    fail_over: FailOver = None,
    output: options.Output = None,
    format: Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure time and memory of bridges beside Hugging Face, in pairs, in one process, on the same inputs.

    Without --scenario, --component and --shape a selection that takes minutes; --scenario all is everything.

    Exit codes: 0 measured, 1 over --fail-over, 2 bad usage, 3 something could not be run, 5 nothing was measured,
    130 interrupted.
    """
    with exit_codes(verbose):
        selection = Selection(
            scenarios=_chosen("scenario", scenario, SCENARIOS),
            components=_chosen("component", component, COMPONENTS),
            shapes=[Shape.parse(text) for text in split(shape or ())],
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
        code = INTERRUPTED if interrupted else NOTHING_MEASURED if all(each.message for each in run.measured) else 0
        if fail_over is not None and not interrupted:
            found = over(run.measured, fail_over) if before is None else regressions(compared, fail_over)
            for sentence in found:
                typer.echo(f"over the limit: {sentence}", err=True)
            code = FAILED if found else code
    raise typer.Exit(code)


def _chosen(kind: str, given: list[str] | None, names: Iterable[str]) -> list[str]:
    names = list(names)
    asked = split(given or ())
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
    """The benchmark, written to its folder; and whether it was interrupted."""
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
    """All that was measured before the end or an interruption, with a bar on stderr where that is a terminal."""
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
    """A folder for the files, made before anything is measured: an hour's work must not end at a wrong path."""
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
