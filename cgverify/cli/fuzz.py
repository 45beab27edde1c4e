"""`cgverify fuzz`: hunt for a sequence of calls in which a bridge does not compute what Hugging Face computes."""

from __future__ import annotations

from typing import Annotated

import typer

from cgverify.cli import completion, options
from cgverify.cli.command import INTERRUPTED, command
from cgverify.cli.options import known, number_of_jobs, option, split, work
from cgverify.common.errors import UsageError
from cgverify.common.process import hush_libraries
from cgverify.common.processors import processors
from cgverify.common.streams import stdout_to_stderr
from cgverify.plan.axes import DTYPES
from cgverify.plan.cases import KINDS
from cgverify.report.formats import FORMATS

Minutes = Annotated[
    float, work("minutes", "How long to hunt. A failure is then shrunk for at most half a minute.", at_least=0)
]
Seed = Annotated[int, option("seed", "The seed of the hunt.")]
Bridge = Annotated[
    str,
    option(
        "bridge",
        "cgverify, transformer_lens, or module:name of a class or function.",
        completes=completion.names(("cgverify", "transformer_lens")),
    ),
]
Components = Annotated[
    list[str] | None,
    option("component", "attn, block, mlp, embed, …, or blocks.3.attn.", completes=completion.names(KINDS)),
]


@command
def fuzz(
    *,
    model: options.Model = "codegen-nano",
    bridge: Bridge = "cgverify",
    minutes: Minutes = 5,
    component: Components = None,
    dtype: options.Dtype = ["float32"],
    seed: Seed = 0,
    jobs: options.Jobs = "auto",
    output: options.Output = None,
    format: options.Format = "table",
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Hunt for the smallest sequence of calls that a bridge fails.

    The run folder keeps it, and the next hunt in that folder tries it first.

    Examples:
      cgverify fuzz --bridge my_bridge:MyAttention --minutes 2
      cgverify fuzz --bridge my_bridge:MyAttention --component attn
      cgverify fuzz --bridge my_bridge:MyAttention --output reports/fuzz

    Exit codes: 0 none was found in the time, 1 one was found, 2 bad usage, 3 something could not be run, 5 no call was
    made, 130 interrupted.
    """
    dtypes = known("dtype", split(dtype), DTYPES)
    known("format", [format], FORMATS)
    if verbose == 0:
        hush_libraries()  # and no huge pages, each of which a forked process would copy whole

    from cgverify.cli.running import show
    from cgverify.report.frames import write_csv
    from cgverify.runs.folder import new_folder
    from cgverify.runs.hunting import HuntRequest, hunt
    from cgverify.verification.fuzz.subject import can_fork

    if not can_fork():
        raise UsageError("cgverify fuzz needs a system that can fork a process, such as Linux.")

    path = output or new_folder(f"{model}-fuzz")
    number = number_of_jobs(jobs) or processors()
    if not quiet:
        took = f"{minutes:g} min, {number} {'process' if number == 1 else 'processes'}"
        typer.echo(f"{model}: {took}. Run folder {path}", err=True)
    with stdout_to_stderr():
        hunted = hunt(HuntRequest(model, bridge, split(component), dtypes, minutes, seed, number), path)
    write_csv(path, hunted.results)
    code = show(hunted.run, hunted.results, format, detailed=verbose > 0)
    return INTERRUPTED if hunted.interrupted else code
