"""`python -m gmoe`: the program `gmoe`, where its folder is not on the path."""

from gmoe.cli.start import cli

cli(prog_name="gmoe")
