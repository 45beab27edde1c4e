"""Make the pictures of the terminal in docs/images: a bridge that passes, on two checkpoints, and one that fails.

python tools/picture_terminal.py
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from picture_reports import EXPERIMENT, IMAGES, environment
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 100
MOST_LINES = 34
VERIFY = ("all-components", "--model", "codegen-nano")


def picture(folder: Path, name: str, *arguments: str) -> None:
    """Run a command as in a terminal of 100 columns, and draw the first lines of what it prints."""
    command = [sys.executable, "-m", "cgverify", *arguments, "--quiet"]
    variables = environment(folder) | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    done = subprocess.run(command, cwd=folder, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: a bridge that fails
        raise SystemExit(done.returncode)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ cgverify {' '.join(arguments)}", style="bold"))
    for line in done.stdout.splitlines()[:MOST_LINES]:
        console.print(Text.from_ansi(line))
    drawn = console.export_svg(title="cgverify", theme=MONOKAI, unique_id=name)
    (IMAGES / f"terminal-{name}.svg").write_text(own_font(drawn), encoding="utf-8")


def own_font(drawn: str) -> str:
    """Return a picture that loads no font from elsewhere."""
    drawn = re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL)
    return re.sub(r"\s*<!--.*?-->", "", drawn).replace("Fira Code, monospace", "ui-monospace, monospace")


def main() -> None:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "my_bridges.py").write_text(EXPERIMENT.format(broken=True))
        picture(folder, "passing", *VERIFY)
        picture(folder, "codegen-350M", "all-components", "--model", "codegen-350M")
        picture(folder, "failing", *VERIFY, "--bridge", "my_bridges:Experiment")


if __name__ == "__main__":
    main()
