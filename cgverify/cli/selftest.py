"""`cgverify selftest`: check the verifier with seeded faults and correct variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.cli.options import SETTINGS, format_option, kept, known, number_of_jobs, split
from cgverify.common.devices import require_devices
from cgverify.common.errors import CgverifyError, RunFolderError
from cgverify.common.numerics import pin_numerics
from cgverify.common.streams import stdout_to_stderr
from cgverify.plan.axes import DTYPES

FORMATS = ("table", "csv")
THREADS = 1
"""The tensors of the self-test are so small that a second thread would only wait."""

Output = Annotated[Path | None, kept("output", "A new folder for selftest.csv.", shows="FOLDER")]
Format = Annotated[str, format_option(FORMATS)]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Try every fault in one dtype, component and case only: about a minute.",
        rich_help_panel=SETTINGS,
    ),
]


@command
def selftest(
    *,
    dtype: options.Dtype = ["float32", "bfloat16", "float16"],
    device: options.Device = ["cpu"],
    quick: Quick = False,
    threads: options.Threads = THREADS,
    jobs: options.Jobs = "auto",
    output: Output = None,
    format: Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Check that the verifier finds seeded faults in codegen-nano, and accepts correct variants.

    Faults that change no bit, or that are below the resolution of a dtype, are recognised by computing, and listed
    separately. Faults of the reference must be refused or suspect, and never be blamed on the bridge.

    Examples:
      cgverify selftest
      cgverify selftest --quick --dtype bfloat16
      cgverify selftest --device cuda --output selftest

    Exit codes: 0 every other fault was found and no variant was flagged, 1 a missed or wrongly blamed fault or a false
    alarm, 2 bad usage, 3 something could not be run, 130 interrupted.
    """
    dtypes, devices = known("dtype", split(dtype), DTYPES), options.device_names(device)
    known("format", [format], FORMATS)
    if output is not None and output.exists():
        raise RunFolderError(f"{output} exists already: give --output a new folder.")

    from cgverify.cli.running import console, import_libraries

    import_libraries(verbose)

    from cgverify.report.render import terminal
    from cgverify.selftest import seeded, variants
    from cgverify.selftest.pieces import pieces, results_in_order, run_pieces
    from cgverify.selftest.report import results_frame, sections
    from cgverify.selftest.self_test import exit_code

    require_devices(devices)
    pin_numerics(threads)
    every = (*seeded.FAULTS, *variants.VARIANTS, *seeded.HIDDEN, *seeded.REFERENCES)
    planned = list(pieces(every, dtypes, devices, quick))
    shown = console(quiet)
    # Without a thread that refreshes the bar, since processes are forked while it is shown.
    with stdout_to_stderr(), Progress(console=shown, transient=True, disable=shown is None, auto_refresh=False) as bar:
        found = run_pieces(planned, threads, number_of_jobs(jobs))
        finished = list(bar.track(found, len(planned), description="verifying"))
    results = results_in_order(finished, every, dtypes, devices)
    frame = results_frame(results)
    if output is not None:
        output.mkdir(parents=True)
        frame.to_csv(output / "selftest.csv", index=False, lineterminator="\n")
    if format == "csv":
        typer.echo(frame.to_csv(index=False, lineterminator="\n"), nl=False)
    else:
        typer.echo(terminal(sections(results)), nl=False)
    errors = {message for piece in finished for message in piece.errors}
    for message in sorted(errors):
        typer.echo(f"Could not be run: {message}", err=True)
    return exit_code(results) or (CgverifyError.exit_code if errors else 0)
