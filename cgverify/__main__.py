"""`cgverify`, and `python -m cgverify`."""

from cgverify.cli.app import app
from cgverify.common.streams import use_utf8


def main() -> None:
    use_utf8()
    app(prog_name="cgverify")


if __name__ == "__main__":
    main()
