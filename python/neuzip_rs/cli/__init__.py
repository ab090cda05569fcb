"""The `neuzip` command: compress, decompress, verify, info, bench.

Exit status: 0 success, 1 an error or damaged data, 2 wrong usage, 130 after Ctrl-C. Results go to
standard output; progress, notes and errors go to standard error. Nobody ever sees a traceback.
"""

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from neuzip_rs import __version__

__all__ = ["main"]


def main() -> int:
    """Runs the command with the arguments of this process.

    Returns:
        The exit status.
    """
    # Ahead of everything: this answer needs no argument parser, which takes longer to import.
    if sys.argv[1:] == ["--version"]:
        return _finish(_say_version())
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stderr is None:
        # Started without one: print() would take standard output instead.
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        # File and tensor names may hold what the terminal's encoding cannot say.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not sys.argv[1:]:
        # What typer makes of this differs from release to release.
        _run(["--help"])
        return _finish(2)
    return _finish(_run(sys.argv[1:]))


def _say_version() -> int:
    print(f"neuzip {__version__}")
    return 0


def _run(arguments: list[str]) -> int:
    try:
        from neuzip_rs.cli.app import app

        app(arguments, prog_name="neuzip")
    except SystemExit as request:
        return request.code if isinstance(request.code, int) else int(request.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _abandon_output()
    except BaseException as error:
        # Not only Exception: a panic of the native module is none.
        return _say_error(f"internal error: {type(error).__name__}: {error}")
    return 0


def _finish(code: int) -> int:
    # What print() holds back is written here, where an error can still be told.
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _abandon_output()
    except OSError as error:
        _abandon_output()
        return _say_error(f"standard output: {error.strerror}")
    return code


def _abandon_output() -> int:
    # The interpreter flushes once more when it ends, and must not fail then.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _say_error(message: str) -> int:
    print(f"neuzip: {message}", file=sys.stderr)
    return 1


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    # An exception removes unfinished files on its way out, like Ctrl-C.
    sys.exit(128 + number)
