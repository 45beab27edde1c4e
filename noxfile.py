"""Developer tasks. `nox` runs tests, lint and types; `nox -s slow parity bench` the rest. `--no-venv` works too."""

import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_existing_virtualenvs = True


def install(session: nox.Session) -> None:
    if session.virtualenv.is_sandboxed:
        session.install("-c", "constraints.txt", "-e", ".[dev,dask]")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests that take less than 30 seconds each."""
    install(session)
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    install(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    install(session)
    session.run("mypy")


@nox.session
def slow(session: nox.Session) -> None:
    install(session)
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Whole checkpoints: the main job, and the shipped one in every dtype."""
    install(session)
    session.run("pytest", "-m", "parity", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What the bridge costs beside Hugging Face, measured in pairs; options of `cgverify bench` after `--`."""
    install(session)
    session.run("cgverify", "bench", *session.posargs)
