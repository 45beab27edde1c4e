"""How a function becomes a command: what the user typed goes in, an exit code comes out."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from inspect import Parameter
from typing import Any, get_type_hints

import typer
from typer.models import OptionInfo

from cgverify.common.errors import CgverifyError, UnknownNameError
from cgverify.common.printable import message_of

INTERRUPTED = 130


def command(function: Callable[..., int]) -> Callable[..., None]:
    """Let typer call a function that takes options by keyword and returns an exit code.

    A parameter whose type is a group of options (a NamedTuple) appears on the command line as those options.
    """
    groups: dict[str, Any] = {}
    parameters = []
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind = hints[parameter.name]
        if hasattr(kind, "_fields"):
            groups[parameter.name] = kind
            own = get_type_hints(kind, include_extras=True)
            given = [(name, kind._field_defaults[name], own[name]) for name in kind._fields]
        else:
            given = [(parameter.name, parameter.default, kind)]
        parameters += [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint) for name, default, hint in given
        ]

    options = {name for parameter in parameters for name in _option_names(parameter)}

    @functools.wraps(function)
    def call(**typed: Any) -> None:
        verbosity = typed.get("verbose", 0)
        grouped = {name: kind(*(typed.pop(field) for field in kind._fields)) for name, kind in groups.items()}
        with exit_codes(verbosity, options):
            code = function(**typed, **grouped)
        raise typer.Exit(code)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


@contextlib.contextmanager
def exit_codes(verbosity: int = 0, options: Collection[str] = ()) -> Iterator[None]:
    """Turn an exception into one sentence on stderr and an exit code. From verbosity 2 on, let it pass instead.

    Args:
        options: the options of the command, which the sentence names as they are typed.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except CgverifyError as error:
        if verbosity >= 2:
            raise
        typer.echo(f"Error: {_with_option(error, options)}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except BrokenPipeError:  # the reader of stdout has closed it
        sys.stdout = None
        raise typer.Exit(CgverifyError.exit_code) from None
    except BaseException as error:  # Python would exit with 1, which means a parity failure here
        if verbosity >= 2:
            raise
        typer.echo(f"Error: {type(error).__name__}: {message_of(error)} (-vv shows the traceback).", err=True)
        raise typer.Exit(CgverifyError.exit_code) from None


def _option_names(parameter: Parameter) -> Iterator[str]:
    for declared in getattr(parameter.annotation, "__metadata__", ()):
        if isinstance(declared, OptionInfo):  # the first name is where other ways to declare have the default
            yield from (str(declared.default), *(declared.param_decls or ()))


def _with_option(error: CgverifyError, options: Collection[str]) -> str:
    """Return the sentence of an error. `Unknown dtype` becomes `Unknown --dtype` if that is an option."""
    if isinstance(error, UnknownNameError) and f"--{error.kind}" in options:
        return str(error).replace(f"Unknown {error.kind} ", f"Unknown --{error.kind} ", 1)
    return str(error)
