"""`cgverify selftest`: check the verifier with seeded faults and correct variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track

from cgverify.cli import options
from cgverify.cli.command import command
from cgverify.cli.options import SETTINGS, format_option, kept, known, split
from cgverify.common.devices import require_devices
from cgverify.common.errors import CgverifyError, RunFolderError
from cgverify.common.numerics import pin_numerics
from cgverify.common.process import only_new_objects_collected
from cgverify.common.streams import stdout_to_stderr
from cgverify.plan.axes import DTYPES

if TYPE_CHECKING:  # importing torch takes seconds, which --help has not
    from cgverify.common.records import Cell, CellResult
    from cgverify.selftest.result import SelfTestResult

FORMATS = ("table", "csv")
THREADS = 1
"""The tensors of the self-test are so small that a second thread would only wait."""

Output = Annotated[Path | None, kept("output", "A new folder for selftest.csv.", shows="FOLDER")]
Format = Annotated[str, format_option(FORMATS)]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        help="Try every fault in one dtype, component and case only: a few minutes.",
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

    from cgverify.checkpoint.resolve import resolve
    from cgverify.common.records import Verdict
    from cgverify.observe.candidate import find_candidate
    from cgverify.report.render import terminal
    from cgverify.selftest import seeded, variants
    from cgverify.selftest.changed_references import reference_results
    from cgverify.selftest.hidden_faults import hidden_results
    from cgverify.selftest.report import results_frame, sections
    from cgverify.selftest.self_test import MODEL, SelfTest, exit_code, prompt_of, shares
    from cgverify.verification.checkpoint_verifier import CheckpointVerifier
    from cgverify.verification.judge import Judge

    require_devices(devices)
    pin_numerics(threads)
    source = resolve(MODEL)
    candidates = (*seeded.FAULTS, *variants.VARIANTS)
    by_name = {each.bridge: find_candidate(each.bridge) for each in (*candidates, *seeded.HIDDEN)}
    finished: list[CellResult] = []
    with stdout_to_stderr(), only_new_objects_collected():
        verifier = CheckpointVerifier(source, by_name, prompt_of(source), Judge(with_sentence=False))
        shown = console(quiet)

        def verify(cells: Sequence[Cell]) -> list[CellResult]:
            done = list(
                track(
                    verifier.verify_all(cells),
                    "verifying",
                    len(cells),
                    console=shown,
                    transient=True,
                    disable=shown is None,
                )
            )
            finished.extend(done)
            return done

        results: list[SelfTestResult] = []
        for types, share in shares(dtypes, quick):
            self_test = SelfTest(candidates[share], types, tuple(devices), quick)
            results += self_test.results(verify(self_test.plan(source)), source)
            results += hidden_results(seeded.HIDDEN[share], types, devices, quick, verify, source)
            results += reference_results(seeded.REFERENCES[share], types, devices, quick)
    frame = results_frame(results)
    if output is not None:
        output.mkdir(parents=True)
        frame.to_csv(output / "selftest.csv", index=False, lineterminator="\n")
    if format == "csv":
        typer.echo(frame.to_csv(index=False, lineterminator="\n"), nl=False)
    else:
        typer.echo(terminal(sections(results)), nl=False)
    errors = {found.message for one in finished for found in one.findings if found.verdict is Verdict.ERROR}
    for message in sorted(errors):
        typer.echo(f"Could not be run: {message}", err=True)
    return exit_code(results) or (CgverifyError.exit_code if errors else 0)
