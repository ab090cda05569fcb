"""One run of a command: what it says, to whom, and the exit status it ends with."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer

from neuzip_rs._errors import NeuzipError
from neuzip_rs.cli.progress import progress_bar
from neuzip_rs.cli.report import printable
from neuzip_rs.directory.content import Progress
from neuzip_rs.directory.places import PlaceError
from neuzip_rs.directory.workspace import partial_folder


class UsageError(Exception):
    """The arguments make no sense, or not together."""


class Session:
    """What the user wants to hear."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False, bar: bool = True) -> None:
        """Prepares a run.

        Args:
            quiet: Say nothing but errors (and JSON, if asked for).
            as_json: Results as JSON lines.
            bar: Show progress, if there is a terminal to show it on.
        """
        self.as_json = as_json
        self.shown: Callable[[str], str] = str
        """What makes of a path the name that the user knows."""
        self._quiet = quiet
        self.bar = bar and not quiet

    def progress(self, verb: str, path: str | Path) -> AbstractContextManager[Progress]:
        """A progress bar, or a function that does nothing.

        Even that matters: calling it is when Python notices Ctrl-C.
        """
        name = "standard input" if path == "-" else Path(path).name
        return progress_bar(printable(f"{verb} {name}"), shown=self.bar)

    def note(self, message: str) -> None:
        """Says something that is no result and no error."""
        if not self._quiet:
            print(f"neuzip: {printable(self.shown(message))}", file=sys.stderr)

    @contextmanager
    def resumable(self, target: Path) -> Iterator[None]:
        """Says after an interruption what is left of the directory that the body writes."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            partial = partial_folder(target)
            if partial.exists():
                self.note(f"what is finished stays in {partial}; the same command goes on there")
            raise

    def result(
        self, facts: Mapping[str, Any], sentence: str | None = None, *, aside: bool = False
    ) -> None:
        """Says what was done to a path.

        Args:
            facts: The JSON object.
            sentence: The same for people, None if it has been printed already.
            aside: Say it on standard error, if somebody is there to read it, because the data may
                be on standard output.
        """
        if self.as_json:
            known = {key: self._named(value) for key, value in facts.items()}
            print(json.dumps(known), flush=True)
        elif sentence is not None and not self._quiet and (not aside or _has_reader(sys.stderr)):
            print(
                printable(self.shown(sentence)),
                file=sys.stderr if aside else sys.stdout,
                flush=True,
            )

    def run(self, paths: Sequence[str], work: Callable[[str], None]) -> NoReturn:
        """Does something with every path, also after an error, and ends the command.

        Raises:
            typer.Exit: Always.
        """
        codes: set[int] = set()
        for path in paths:
            try:
                work(path)
            except BrokenPipeError:
                raise
            except KeyboardInterrupt:
                print("neuzip: interrupted", file=sys.stderr)
                raise typer.Exit(130) from None
            except Exception as error:
                # Whatever it is: the next path may be all right.
                codes.add(self._fail(path, error))
        raise typer.Exit(1 if 1 in codes else max(codes, default=0))

    def refuse(self, message: str) -> NoReturn:
        """Ends the command because of its arguments.

        Raises:
            typer.Exit: Always.
        """
        print(f"neuzip: {printable(message)}", file=sys.stderr)
        raise typer.Exit(2)

    def _fail(self, path: str, error: Exception) -> int:
        message = self.shown(describe(error))
        if path not in message:
            message = f"{path}: {message}"
        print(f"neuzip: {printable(message)}", file=sys.stderr, flush=True)
        if self.as_json:
            print(json.dumps({"path": path, "error": message}), flush=True)
        return 2 if isinstance(error, (UsageError, PlaceError)) else 1

    def _named(self, value: object) -> object:
        return self.shown(value) if isinstance(value, str) else value


def _has_reader(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def describe(error: Exception) -> str:
    """The error as a sentence, without its class if people can understand it without."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names[:1], error.strerror])
    text = str(error)
    if isinstance(error, MemoryError):
        return f"out of memory{': ' if text else ''}{text}"
    if isinstance(error, (NeuzipError, UsageError, ValueError, OSError)) and text:
        return text
    return f"internal error: {type(error).__name__}: {text}"
