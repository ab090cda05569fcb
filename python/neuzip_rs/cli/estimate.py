"""`neuzip estimate`."""

from pathlib import Path
from typing import Any

from neuzip_rs import _native
from neuzip_rs.cli import options
from neuzip_rs.cli.info import print_facts
from neuzip_rs.cli.places import SourceKind, located, source_kind
from neuzip_rs.cli.session import Session
from neuzip_rs.cli.staging import Staging
from neuzip_rs.cli.streams import spooled_source


def estimate(
    paths: options.Paths,
    level: options.LevelOption = options.Level.DEFAULT,
    threads: options.Threads = 0,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Say what compressing would give, and why, without writing anything.

    Models are planned as compress plans them. Of tensors of more than 64 chunks (8 MiB) 64 are
    encoded, spread evenly, and the rest is taken to be like them; smaller tensors are exact.
    Entropies are measured on up to 16 chunks of each tensor.

    --json prints what info --json prints, with the estimated compressed_bytes; fields, other_bytes
    and why of each tensor are estimates too, exact says whether they are exact, and alternatives
    says how many bytes "raw", "fast" (the level) and "no scale offsets" would take.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)
    count = options.thread_count(threads)

    def work(path: str) -> None:
        facts = {**_facts(session, staging.source(path), level.value, count), "path": path}
        if not session.as_json:
            print_facts(facts, verbose=verbose, verb="would be about")
        session.result(facts)

    with Staging(session) as staging:
        session.run(paths, work)


def _facts(session: Session, path: str, level: str, threads: int | None) -> dict[str, Any]:
    # Here: only this command needs it.
    from neuzip_rs.cli.forecast import Forecast

    kind = source_kind(path)
    with session.progress("estimating", path) as progress:
        forecast = Forecast(level, threads, progress)
        if kind is SourceKind.FOLDER:
            return {"path": path, **forecast.directory(located(path))}
        if kind is SourceKind.FILE:
            return {"path": path, **forecast.file(Path(path), _native.content_kind(path))}
        with spooled_source(path, progress) as copy:
            return {"path": path, **forecast.file(copy, _native.content_kind(str(copy)))}
