"""`cgverify selftest`: the verifier's own exam."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cgverify.cli import options
from cgverify.cli.exits import exit_codes
from cgverify.cli.options import known, split
from cgverify.common.environment import hush_libraries, pin_numerics, prefer_huge_pages
from cgverify.common.errors import RunFolderError
from cgverify.common.streams import stdout_is_ours
from cgverify.plan.cells import DEVICES, DTYPES

FORMATS = ("table", "csv")
THREADS = 1
"""The exam's tensors are so small that a second thread would only be waited for."""

Output = Annotated[Path | None, typer.Option(help="New folder for selftest.csv.", envvar="CGVERIFY_OUTPUT")]
Format = Annotated[str, typer.Option(help=f"On stdout: {', '.join(FORMATS)}.", envvar="CGVERIFY_FORMAT")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Every fault, each in one component and one case only: under a minute.")
]


def selftest(
    dtype: options.Dtype = ["float32", "bfloat16", "float16"],  # noqa: B006  typer wants the default as a list
    device: options.Device = ["cpu"],  # noqa: B006
    quick: Quick = False,
    threads: options.Threads = THREADS,
    output: Output = None,
    format: Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Let the verifier find seeded faults in codegen-nano, and hold correct variants.

    Faults that change no bit, or lie below the resolution of a dtype, are found out by computing, and listed apart.

    Exit codes: 0 every other fault was caught and no variant flagged, 1 a miss or a false alarm, 2 bad usage,
    3 something could not be run, 130 interrupted.
    """
    with exit_codes(verbose):
        dtypes, devices = known("dtype", split(dtype), DTYPES), known("device", split(device), DEVICES)
        known("format", [format], FORMATS)
        _require_new(output)

        from cgverify.cli.verification import with_progress

        prefer_huge_pages()
        if verbose == 0:
            hush_libraries()

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
        code = exit_code(answers)
    raise typer.Exit(code)


def _require_new(output: Path | None) -> None:
    if output is not None and output.exists():
        raise RunFolderError(f"{output} exists already: give --output a new folder.")
