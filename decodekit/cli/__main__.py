"""`python -m decodekit.cli`: the command line."""

from decodekit.cli import app

app(prog_name="decodekit")
