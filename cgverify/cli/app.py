"""The command line. Each command has its own file, and imports what it needs when it is called."""

from __future__ import annotations

from typing import Annotated

import typer

from cgverify import __version__
from cgverify.cli import baseline
from cgverify.cli.all_components import all_components
from cgverify.cli.attention import attention
from cgverify.cli.bench import bench
from cgverify.cli.compare import compare
from cgverify.cli.env import env
from cgverify.cli.fuzz import fuzz
from cgverify.cli.help import Command, Group, help_of
from cgverify.cli.merge import merge
from cgverify.cli.models import models
from cgverify.cli.report import report
from cgverify.cli.selftest import selftest
from cgverify.cli.sweep import sweep
from cgverify.cli.watch import watch

HELP = """Does a TransformerLens bridge of CodeGen compute what Hugging Face computes?

Lists repeat or take commas. An environment variable can set each option that has a value: CGVERIFY_DTYPE sets --dtype.

Examples:
  cgverify all-components --model codegen-nano
  cgverify sweep smoke
  cgverify all-components --help"""

app = typer.Typer(
    name="cgverify",
    cls=Group,
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cgverify {__version__}")
        raise typer.Exit


@app.callback()
def cgverify(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


PANELS = {
    "Verify": (all_components, attention, sweep, watch, merge),
    "Read what was found": (report, compare),
    "Look around": (models, env),
    "Check the verifier, and what a bridge costs": (selftest, fuzz, bench),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(cls=Command, help=help_of(command), rich_help_panel=panel)(command)
app.add_typer(baseline.app, name="baseline", rich_help_panel="Read what was found")
