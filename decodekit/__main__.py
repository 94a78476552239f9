"""`python -m decodekit`: the command line."""

from decodekit.cli import app

app(prog_name="decodekit")
