"""`python -m cgverify`."""

from cgverify.cli.app import app

if __name__ == "__main__":
    app(prog_name="cgverify")
