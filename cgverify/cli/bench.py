"""`cgverify bench`: time and memory of bridges, compared with Hugging Face."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track

from cgverify.bench.baseline import FILE, changes, over, read, regressions
from cgverify.bench.records import Measured
from cgverify.bench.scenarios import COMPONENTS, SCENARIOS, Selection, Shape
from cgverify.cli import completion, options
from cgverify.cli.command import INTERRUPTED, command
from cgverify.cli.options import format_option, known, option, split
from cgverify.common.errors import UsageError
from cgverify.common.process import hush_libraries, keep_memory, uncollected
from cgverify.common.streams import stdout_to_stderr
from cgverify.plan.axes import DTYPES

if TYPE_CHECKING:
    from cgverify.bench.session import PreparedBench

FORMATS = ("table", "json", "csv", "html")
MEMORY = ("fresh", "kept")
FAILED, NOTHING_MEASURED = 1, 5

what = partial(option, panel="What to measure")
how = partial(option, panel="How to measure")
limits = partial(option, panel="What to compare with")

Scenarios = Annotated[
    list[str] | None,
    what(
        "scenario",
        f"{', '.join(SCENARIOS)}; or all.",
        shows="SCENARIO,…",
        completes=completion.names((*SCENARIOS, "all")),
    ),
]
Components = Annotated[
    list[str] | None,
    what(
        "component",
        f"{', '.join(COMPONENTS)}; or all.",
        shows="COMPONENT,…",
        completes=completion.names((*COMPONENTS, "all")),
    ),
]
Shapes = Annotated[list[str] | None, what("shape", "BATCHxTOKENS, or 1x1+1000 with a cache.", shows="SHAPE,…")]
Seconds = Annotated[float, how("seconds", "Time limit of one comparison, in seconds.", shows="N", at_least=0)]
Width = Annotated[
    float,
    how("width", "Stop a comparison when the relative width of its ratio's interval is below this.", at_least=0),
]
Memory = Annotated[
    str,
    how(
        "memory",
        "fresh returns freed memory to the system and pays for new memory, as any process does. kept keeps it, so that "
        "only arithmetic is measured.",
        shows="WHICH",
        completes=completion.names(MEMORY),
    ),
]
Baseline = Annotated[
    Path | None, limits("baseline", f"An earlier {FILE} of this machine to compare with.", shows="FILE")
]
From = Annotated[Path | None, limits("from", f"Measure nothing, and report on this {FILE}.", shows="FILE")]
FailOver = Annotated[
    float | None,
    limits(
        "fail-over",
        "Exit with 1 if a ratio is certainly above this; with --baseline, if it grew by more than this factor.",
        shows="RATIO",
        at_least=0,
    ),
]
Format = Annotated[str, format_option(FORMATS)]


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

    Examples:
      cgverify bench
      cgverify bench --model codegen-nano --shape 1x8
      cgverify bench --bridge cgverify,transformer_lens --format html

    Exit codes: 0 measured, 1 above --fail-over, 2 bad usage, 3 something could not be run, 5 nothing was measured,
    130 interrupted.
    """
    selection = Selection(
        scenarios=_chosen("scenario", scenario, SCENARIOS),
        components=_chosen("component", component, COMPONENTS),
        shapes=[Shape.parse(text) for text in split(shape)],
        dtypes=known("dtype", split(dtype), DTYPES),
        devices=options.device_names(device),
    )
    known("format", [format], FORMATS)
    known("memory", [memory], MEMORY)
    before = None if baseline is None else read(baseline)
    interrupted = False
    if measured is not None:
        run = read(measured)
    else:
        if not split(bridge):
            raise UsageError("--bridge names nothing: give cgverify, transformer_lens, or module:name.")
        if verbose == 0:
            hush_libraries()
        if memory == "kept":
            keep_memory()
        with uncollected():
            from cgverify.bench.session import prepare
            from cgverify.bench.timing import Limits
        prepared = prepare(
            *(model, weights, split(bridge), selection, Limits(width, seconds)),
            threads=threads,
            memory=memory,
            output=output,
        )
        results, interrupted = _measure(prepared, quiet)
        run = prepared.finish(results)

    from cgverify.bench.formats import render

    compared = [] if before is None else changes(before, run)
    typer.echo(render(format, run, compared), nl=False)
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


def _measure(prepared: PreparedBench, quiet: bool) -> tuple[list[Measured], bool]:
    """Return what was measured, and whether it was interrupted. Show a progress bar if stderr is a terminal."""
    harness, points = prepared.harness, prepared.points
    if not quiet:
        typer.echo(
            f"{harness.model}, weights {harness.source.origin}: {len(points)} points, "
            f"up to {harness.limits.seconds:g} s each. {prepared.folder}",
            err=True,
        )
    console = Console(stderr=True)
    results: list[Measured] = []
    with stdout_to_stderr():
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
