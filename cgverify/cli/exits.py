"""How a command ends: exceptions become one sentence on stderr and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from cgverify.common.errors import CgverifyError
from cgverify.common.printable import said

INTERRUPTED = 130


@contextlib.contextmanager
def exit_codes(verbosity: int = 0) -> Iterator[None]:
    """Turn what goes wrong inside into an exit code. With verbosity 2 or more, exceptions pass with their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except CgverifyError as error:
        if verbosity >= 2:
            raise
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except BrokenPipeError:  # whoever read our output has seen enough
        sys.stdout = None
        raise typer.Exit(CgverifyError.exit_code) from None
    except BaseException as error:  # exit code 1, as Python would have it, is a parity failure's
        if verbosity >= 2:
            raise
        typer.echo(f"Error: {type(error).__name__}: {said(error)} (-vv shows where).", err=True)
        raise typer.Exit(CgverifyError.exit_code) from None
