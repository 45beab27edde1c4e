"""`cgverify selftest`: the verifier's own exam."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.cli.options import format_option, known, option, split
from cgverify.common.errors import RunFolderError
from cgverify.common.numerics import pin_numerics
from cgverify.common.streams import stdout_is_ours
from cgverify.plan.cells import DEVICES, DTYPES

FORMATS = ("table", "csv")
THREADS = 1
"""The exam's tensors are so small that a second thread would only wait."""

Output = Annotated[Path | None, option("output", "A new folder for selftest.csv.")]
Format = Annotated[str, format_option(FORMATS)]
Quick = Annotated[
    bool, typer.Option("--quick", help="Try every fault in one component and one case only: under a minute.")
]


@command
def selftest(
    *,
    dtype: options.Dtype = ["float32", "bfloat16", "float16"],
    device: options.Device = ["cpu"],
    quick: Quick = False,
    threads: options.Threads = THREADS,
    output: Output = None,
    format: Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Check that the verifier finds seeded faults in codegen-nano, and accepts correct variants.

    Faults that change no bit, or that are below the resolution of a dtype, are recognised by computing, and listed
    separately.

    Exit codes: 0 every other fault was found and no variant was flagged, 1 a missed fault or a false alarm, 2 bad
    usage, 3 something could not be run, 130 interrupted.
    """
    dtypes, devices = known("dtype", split(dtype), DTYPES), known("device", split(device), DEVICES)
    known("format", [format], FORMATS)
    if output is not None and output.exists():
        raise RunFolderError(f"{output} exists already: give --output a new folder.")

    from cgverify.cli.running import import_libraries, with_progress

    import_libraries(verbose)

    from cgverify.checkpoint.resolve import resolve
    from cgverify.selftest import table
    from cgverify.selftest.exam import MODEL, Exam, exit_code, mark
    from cgverify.selftest.report import exam_frame, show
    from cgverify.verification.checkpoint_verifier import CheckpointVerifier, require_devices
    from cgverify.verification.judge import Judge

    require_devices(devices)
    pin_numerics(threads)
    source = resolve(MODEL)
    exam = Exam((*table.FAULTS, *table.VARIANTS), tuple(dtypes), tuple(devices), quick)
    plan = exam.plan(source)
    with stdout_is_ours():
        verifier = CheckpointVerifier(source, exam.candidates(), judge=Judge(with_sentence=False))
        results = list(with_progress(verifier.verify_all(plan), len(plan), quiet))
        answers = list(mark(exam, results, source))
    frame = exam_frame(answers)
    if output is not None:
        output.mkdir(parents=True)
        frame.to_csv(output / "selftest.csv", index=False)
    if format == "csv":
        typer.echo(frame.to_csv(index=False), nl=False)
    else:
        show(Console(), answers)
    return exit_code(answers)
