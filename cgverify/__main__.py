"""`cgverify`, and `python -m cgverify`."""

from cgverify.cli.app import app


def main() -> None:
    app(prog_name="cgverify")


if __name__ == "__main__":
    main()
