"""Make the pictures in docs/images: reports of a correct bridge, of a faulty one, also in a
notebook, and of one with its baseline.

    python tools/picture_reports.py

It needs playwright and Debian's Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import sync_playwright

from cgverify import load_run

IMAGES = Path(__file__).parents[1] / "docs" / "images"
EXPERIMENT = """
from cgverify.bridge import CodeGenAttentionBridge


class Experiment(CodeGenAttentionBridge):
    def _scores(self, *args):
        scores = super()._scores(*args)
        return scores * 1.0001 if {broken} else scores
"""


def run(folder: Path, name: str, *options: str, broken: str = "False") -> Path:
    """Verify codegen-nano, with the experiment available as `my_bridges:Experiment`, and return the run folder.

    Args:
        broken: an expression of the attention's `self`, which says whether it multiplies its scores.
    """
    (folder / "my_bridges.py").write_text(EXPERIMENT.format(broken=broken))
    cgverify(folder, "all-components", "--model", "codegen-nano", "-q", "--output", name, *options)
    return folder / name


def page(folder: Path, *options: str) -> Path:
    """Write the HTML report of a run folder."""
    report = folder.with_suffix(".html")
    cgverify(folder.parent, "report", str(folder), "--format", "html", "--output", str(report), *options)
    return report


def notebook_output(folder: Path) -> Path:
    """Write what a notebook shows of a run folder, as a page."""
    output = folder.with_suffix(".notebook.html")
    output.write_text(f"<!doctype html><meta charset=utf-8>{load_run(folder)._repr_html_()}", encoding="utf-8")
    return output


def cgverify(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "cgverify", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL)
    if done.returncode not in (0, 1):  # 1: the experiment fails on purpose
        raise SystemExit(done.returncode)


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command that imports candidates from a folder."""
    return os.environ | {"PYTHONPATH": f"{folder}:{IMAGES.parents[1]}", "PYTHONDONTWRITEBYTECODE": "1"}


def picture(browser: Any, page: Path, name: str, width: int, height: int, scheme: str = "light") -> None:
    """Take a picture of the top of a page, in a window of the given size."""
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    tab.goto(page.as_uri())
    tab.screenshot(path=IMAGES / f"report-{name}.png")
    tab.close()


def main() -> None:
    experiment = ("--bridge", "my_bridges:Experiment", "--dtype", "float32,bfloat16")
    with TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        passing = page(run(folder, "passing", "--dtype", "float32,bfloat16,float16"))
        before = run(folder, "before", *experiment)
        broken = run(folder, "failing", *experiment, broken="True")
        failing, notebook = page(broken), notebook_output(broken)
        third = run(folder, "third", *experiment, broken="self._layer_idx == 2")
        compared = page(third, "--baseline", str(before))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        picture(browser, passing, "passing", 1280, 1180)
        picture(browser, failing, "failing", 1280, 1800)
        picture(browser, compared, "compared", 1280, 1480)
        picture(browser, compared, "dark-phone", 390, 780, "dark")
        picture(browser, notebook, "notebook", 1000, 900)
        browser.close()


if __name__ == "__main__":
    main()
