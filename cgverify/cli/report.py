"""`cgverify report`: a finished run, shown again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cgverify.cli.exits import exit_codes
from cgverify.cli.options import known
from cgverify.errors import RunFolderError

FORMATS = ("html",)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    format: Annotated[str, typer.Option(help=f"One of {', '.join(FORMATS)}.")] = "html",
    output: Annotated[Path | None, typer.Option(help="The file to write; stdout without it.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="A run folder to compare with.")] = None,
) -> None:
    """Show a run: as one HTML file that needs no network."""
    with exit_codes():
        known("format", [format], FORMATS)

        from cgverify.report.html.page import render
        from cgverify.store import read

        page = render(*read(run), baseline=None if baseline is None else read(baseline))
        if output is None:
            typer.echo(page, nl=False)
            return
        try:
            output.write_text(page, encoding="utf-8")
        except OSError as error:
            raise RunFolderError(f"Cannot write {output}: {error.strerror}. Give another --output.") from error
