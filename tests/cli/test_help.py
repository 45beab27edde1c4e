"""`--help` is for people, errors name what was typed, and the shell completes names without torch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import ROOT
from typer.testing import CliRunner

from cgverify.cli import completion
from cgverify.cli.app import app
from cgverify.cli.help import examples_of

GROUP: Any = typer.main.get_command(app)


def commands(group: Any = GROUP, *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *before, name)
        else:
            yield (*before, name), command


COMMANDS = dict(commands())
IDS = [" ".join(path) for path in COMMANDS]


@pytest.mark.parametrize("path", COMMANDS, ids=IDS)
def test_help_has_three_examples_and_no_types(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).stdout
    assert len(re.findall(r"^ +cgverify ", shown, flags=re.MULTILINE)) == 3
    assert not re.search(r"<(str|int|float|bool|path|list)|x>=|env var", shown), shown


@pytest.mark.parametrize("path", COMMANDS, ids=IDS)
def test_examples_are_what_the_command_accepts(path: tuple[str, ...]) -> None:
    examples = examples_of(COMMANDS[path].callback)
    assert all(len(example) <= 76 for example in examples), "a terminal of 80 columns breaks it"
    for example in examples:
        name, *words = shlex.split(re.split(r" [|>] ", example)[0])
        assert (name, *words[: len(path)]) == ("cgverify", *path)
        COMMANDS[path].make_context(path[-1], words[len(path) :])  # raises what typer would report


@pytest.mark.parametrize("path", COMMANDS, ids=IDS)
def test_options_are_under_headings(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        if parameter.param_type_name == "option":
            assert parameter.rich_help_panel, parameter.opts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "--format", "tble"), "Unknown --format 'tble': did you mean 'table'?"),
        (("bench", "--scenario", "train-fwd"), "Unknown --scenario 'train-fwd'"),
        (("attention", "--model", "codegen-nano", "--dtype", "half"), "--dtype 'half': unknown dtype"),
        (("attention", "--model", "codegen-nano", "--allow", "tf23"), "Unknown --allow 'tf23': did you mean 'tf32'?"),
        (("attention", "--model", "codegen-nano", "--seq-len", "0"), "'--seq-len': 0 is less than 1."),
        (("selftest", "--threads", "100000"), "'--threads': 100000 is more than 1024."),
        (("sweep", "smoek"), "Unknown plan 'smoek': did you mean 'smoke'?"),
    ],
)
def test_error_names_the_option_as_typed(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})
    assert done.exit_code == 2
    assert message in done.stderr


def test_shell_is_offered_names_without_importing_torch(tmp_path: Path) -> None:
    """Ask as bash does, once for each kind of value, in one process."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "reports" / "one").mkdir(parents=True)
    (tmp_path / "reports" / "one" / "run.json").write_text("{}")
    typed = {
        "all-components --model codegen-n": "codegen-nano",
        "all-components --model min": "mine",
        "attention --case pat": "patched",
        "all-components --component attn.": "attn.q",
        "sweep smo": "smoke",
        "fuzz --bridge transf": "transformer_lens",
        "fuzz --component unem": "unembed",
        "selftest --dtype float32,bf": "float32,bfloat16",
        "report ": "reports/one",
        "compare reports/one reports/o": "reports/one",
    }
    script = (
        "import contextlib, io, os, sys\n"
        "from cgverify.__main__ import main\n"
        f"for typed in {list(typed)!r}:\n"
        "    words = ['cgverify', *typed.split(' ')]\n"
        "    os.environ |= {'COMP_WORDS': ' '.join(words), 'COMP_CWORD': str(len(words) - 1)}\n"
        "    sys.argv = ['cgverify']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "    print(*output.getvalue().split(), sep=' ')\n"
        "print({'torch', 'transformers', 'transformer_lens', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "_CGVERIFY_COMPLETE": "complete_bash", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    *offered, heavy = done.stdout.splitlines()
    assert heavy == "set()", done.stderr
    for (line, expected), answer in zip(typed.items(), offered, strict=True):
        assert expected in answer.split(), (line, answer)


def test_completion_of_a_list_leaves_out_what_is_given() -> None:
    assert completion.names(("a1", "a2", "b"))("a1,a") == ["a1,a2"]


def test_folder_above_runs_is_offered_with_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nights" / "one").mkdir(parents=True)
    (tmp_path / "nights" / "one" / "run.json").write_text("{}")
    assert completion.run_folders("ni") == ["nights/"]
    assert completion.run_folders("nights/") == ["nights/one"]
    assert completion.run_folders("elsewhere/o") == []
