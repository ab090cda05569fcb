"""The command line's grammar: one command per module."""

from typing import Annotated

import typer

from neuzip_rs import __version__
from neuzip_rs.cli.bench import bench
from neuzip_rs.cli.compress import compress
from neuzip_rs.cli.decompress import decompress
from neuzip_rs.cli.estimate import estimate
from neuzip_rs.cli.info import info
from neuzip_rs.cli.pictures import report
from neuzip_rs.cli.verify import verify

app = typer.Typer(
    name="neuzip",
    help="Lossless compression of neural network weights.",
    epilog="Exit status: 0 success, 1 an error or damaged data, 2 wrong usage.",
    add_completion=False,
    # Errors are caught by neuzip_rs.cli.main: nobody sees a traceback.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"neuzip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    # Its callback does the work.
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Lossless compression of neural network weights."""


for _command in (compress, decompress, verify, info, estimate, report, bench):
    app.command()(_command)
