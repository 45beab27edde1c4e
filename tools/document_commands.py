"""Write the commands and their options into docs/commands.md: a hook of MkDocs, which `mkdocs.yml` names."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import typer

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark in a page. MkDocs calls this for each page."""
    return markdown.replace(MARK, commands_page()) if MARK in markdown else markdown


def commands_page() -> str:
    from cgverify.cli.app import app

    return "\n\n".join(
        section for name, command in commands(typer.main.get_command(app)) for section in lines(name, command)
    )


def commands(group: Any, before: str = "cgverify") -> Iterator[tuple[str, Any]]:
    """Yield each command with its name, as it is typed."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def lines(name: str, command: Any) -> Iterator[str]:
    """Yield the paragraphs of a command's section: usage, description, examples, and a table for each heading."""
    operands = [one for one in command.params if one.param_type_name == "argument"]
    yield f"## {name}"
    described, _, rest = inspect.cleandoc(command.callback.__doc__).partition("Examples:\n")
    yield described.strip().replace("<", "&lt;")
    examples, _, after = rest.partition("\n\n")
    yield "\n".join(["```sh", *(line.strip() for line in examples.splitlines()), "```"])
    if after:
        yield after.replace("\n", " ")
    if operands:
        yield table("Arguments", "argument", ((f"`{one.metavar}`", one) for one in operands))
    panels = defaultdict(list)
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden:
            panels[one.rich_help_panel].append(one)
    for panel, options in panels.items():
        yield table(panel, "option", ((names(one), one) for one in options))


def names(option: Any) -> str:
    word = "" if option.is_flag or option.count else f" {option.metavar}"
    word = word.replace("|", "\\|")
    return ", ".join(f"`{name}{word}`" if name.startswith("--") else f"`{name}`" for name in option.opts)


def table(heading: str, kind: str, rows: Any) -> str:
    cells = [f"| {name} | {escaped(one.help)}{default(one)} |" for name, one in rows]
    return "\n".join([f"**{heading}**\n", f"| {kind} | |", "|---|---|", *cells])


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def default(parameter: Any) -> str:
    value = parameter.default
    if value in (None, False, [], ()) or callable(value) or getattr(parameter, "count", False):
        return ""
    return f" Default: `{','.join(map(str, value)) if isinstance(value, list | tuple) else value}`."
