"""`neuzip report`."""

from pathlib import Path
from typing import Annotated

import typer

from neuzip_rs.cli import options
from neuzip_rs.cli.places import SourceKind, located, source_kind
from neuzip_rs.cli.report import ratio
from neuzip_rs.cli.session import Session, UsageError
from neuzip_rs.cli.staging import Staging
from neuzip_rs.directory.transfer import write_file

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A file, a model directory, or a URL.")]
Page = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="HTML", help="Where to write the page."),
]
Picture = Annotated[
    str | None,
    typer.Option("--png", metavar="PNG", help="Draw a picture as well (needs matplotlib)."),
]


def report(
    model: Model,
    output: Page = None,
    png: Picture = None,
    force: options.Force = False,
    level: options.LevelOption = options.Level.DEFAULT,
    threads: options.Threads = 0,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Draw where the bits of a model go: fields, exponents, layers and tensors.

    Writes MODEL.report.html into this folder unless -o says otherwise: one page that needs nothing
    else, neither scripts nor a network. A model that is not compressed is looked at as
    `neuzip estimate` does; of a compressed one what is measured is decoded.

    --json prints: path, output, png (null without --png), original_bytes, compressed_bytes, ratio,
    estimated; after an error path and error.
    """
    session = Session(quiet=quiet, as_json=as_json, bar=not no_progress)

    count = options.thread_count(threads)
    with Staging(session) as staging:

        def place(output: str | None) -> Path | None:
            here = staging.output(output)
            return None if here is None else Path(here)

        def work(path: str) -> None:
            source = staging.source(path)
            _report(session, path, source, place(output), place(png), force, level.value, count)
            staging.send(overwrite=force)

        session.run([model], work)


def _report(
    session: Session,
    path: str,
    local: str,
    output: Path | None,
    png: Path | None,
    force: bool,
    level: str,
    threads: int | None,
) -> None:
    if source_kind(local) is SourceKind.STREAM:
        message = f"{path}: a report needs a file or a directory"
        raise UsageError(message)
    source = located(local)
    target = output or Path(f"{source.name}.report.html")
    for place in (target, png):
        if place is not None and place.exists() and not force:
            message = f"{place} exists already; -f replaces it"
            raise FileExistsError(message)
        if place is not None and place.exists() and place.samefile(source):
            message = f"{path}: the output would be the source"
            raise UsageError(message)
    # Here: only this command needs it.
    from neuzip_rs.report import draw, gather, page

    with session.progress("reading", path) as progress:
        facts = gather(source, level=level, threads=threads, progress=progress)
    write_file(target, page(facts).encode("utf-8"))
    if png is not None:
        draw(facts, png)
    said = " and ".join(str(place) for place in (target, png) if place is not None)
    session.result(
        {
            "path": path,
            "output": str(target),
            "png": None if png is None else str(png),
            "original_bytes": facts.original_bytes,
            "compressed_bytes": facts.stored_bytes,
            "ratio": ratio(facts.stored_bytes, facts.original_bytes),
            "estimated": facts.estimated,
        },
        f"{path} -> {said}",
    )
