"""What `--help` shows: options under headings, without types, and examples as they are typed."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup


class Command(TyperCommand):
    """A command whose arguments and flags are shown without their types."""

    def get_params(self, ctx: Any) -> Any:
        return _without_type(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose flags are shown without their types."""

    def get_params(self, ctx: Any) -> Any:
        return _without_type(super().get_params(ctx))


def _without_type(parameters: Any) -> Any:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False) or getattr(parameter, "count", False):
            parameter.metavar = ""
        elif parameter.param_type_name == "argument":
            parameter.display_type_rich = _nothing
    return parameters


def _nothing(*_: Any, **__: Any) -> None:
    pass


def help_of(function: Any) -> str:
    """Return a docstring for rich, with each paragraph in one line, which rich breaks. Examples keep their lines."""
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        part if part.startswith("Examples:") else " ".join(part.split("\n")) for part in paragraphs
    ).replace("[", "\\[")


def examples_of(function: Any) -> list[str]:
    """Return the command lines after `Examples:` in a docstring."""
    _, _, after = inspect.cleandoc(function.__doc__ or "").partition("Examples:\n")
    return [line.strip() for line in after.partition("\n\n")[0].splitlines()]
