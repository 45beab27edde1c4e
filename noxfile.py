"""Developer tasks: `nox` runs every check of CI but the slow tests. `nox -s slow parity bench` runs the rest."""

import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["check"]
nox.options.reuse_existing_virtualenvs = True

PACKAGED = (
    ("all-components", "--model", "codegen-350M"),
    ("sweep", "--list"),
    ("sweep", "smoke", "--jobs", "2"),
)
"""Commands that an installed wheel must carry out alone."""

TEST_TOOLS = (
    *(
        "check-jsonschema",
        "hypothesis",
        "ipykernel",
        "matplotlib",
        "nbclient",
        "nbformat",
        "ninja",
        "peft",
        "playwright",
    ),
    *("pytest", "pytest-timeout", "pytest-xdist"),
)
"""Packages that the tests import. The other tools for developers need newer versions of some dependencies."""

COVERAGE_FLOOR = 90
"""Percent of the package's lines that the quick tests must execute."""


def install(session: nox.Session) -> None:
    """Install the pinned environment, unless nox was started with --no-venv."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", "-e", ".[dev,dask]")


def run_lint(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("lint-imports")


def run_types(session: nox.Session) -> None:
    session.run("mypy")


def run_tests(session: nox.Session) -> None:
    session.run("pytest", "--cov", f"--cov-fail-under={COVERAGE_FLOOR}", *session.posargs)


@nox.session
def check(session: nox.Session) -> None:
    """Everything that CI runs, except the slow tests."""
    install(session)
    run_lint(session)
    run_types(session)
    run_tests(session)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, spelling and the order of imports."""
    install(session)
    run_lint(session)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types with mypy."""
    install(session)
    run_types(session)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the quick tests, and measure their coverage."""
    install(session)
    run_tests(session)


@nox.session
@nox.parametrize("constraints", ["constraints.txt", "constraints-5.23.txt"])
def versions(session: nox.Session, constraints: str) -> None:
    """Run the quick tests with both generations of Hugging Face's CodeGen."""
    session.install("-c", constraints, "-e", ".[dev,dask]")
    session.run("pytest", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the quick tests with the lowest versions of the dependencies that pyproject.toml allows."""
    session.install("-c", "constraints.txt", "uv")
    pins = str(Path(session.create_tmp()).resolve() / "lowest.txt")
    resolve = ("uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--extra", "dask")
    session.run(*resolve, "--python", shutil.which("python", path=session.bin), "--output-file", pins, "pyproject.toml")
    session.install("-c", pins, "-e", ".[dask]", *TEST_TOOLS)
    session.run("pytest", "--ignore", "tests/test_structure.py", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests over 10 seconds, one at a time, and those of random examples with many examples."""
    install(session)
    session.run("pytest", "-n0", "-m", "slow or hypothesis", "--hypothesis-profile=many", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Verify whole checkpoints: codegen-350M, and codegen-nano in every dtype."""
    install(session)
    session.run("pytest", "-m", "parity", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation's site in `site/`. A broken link is an error."""
    session.install("-c", "constraints.txt", "-e", ".[docs]")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel, check them, and use the wheel in an empty environment away from the checkout."""
    session.install("-c", "constraints.txt", "build", "twine", "check-wheel-contents")
    checkout, built = Path.cwd(), Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(built))
    (wheel,) = built.glob("*.whl")
    session.run("twine", "check", "--strict", *map(str, built.iterdir()))
    session.run("check-wheel-contents", str(wheel))
    with tempfile.TemporaryDirectory() as away:
        environment = Path(away) / "environment"
        session.run("python", "-m", "venv", str(environment))
        programs = environment / ("Scripts" if sys.platform == "win32" else "bin")
        python, cgverify = str(programs / "python"), str(programs / "cgverify")
        session.chdir(away)
        pip = (python, "-m", "pip", "install", "-q", "-c", str(checkout / "constraints.txt"))
        session.run(*pip, str(wheel), external=True)
        for command in PACKAGED:
            session.run(cgverify, *command, external=True, env={"PYTHONPATH": ""})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what the bridge costs. Options of `cgverify bench` follow after `--`."""
    install(session)
    session.run("cgverify", "bench", *session.posargs)
