"""The report as a picture, for papers and issue trackers; drawn by matplotlib."""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

from neuzip_rs._errors import NeuzipError
from neuzip_rs.cli.report import percent, printable, size
from neuzip_rs.report.facts import Facts, Group

_COLOURS: Final = {"coded": "#0072b2", "raw": "#e69f00", "other": "#6b7480"}
_MEANINGS: Final = {"coded": "entropy-coded", "raw": "as they are", "other": "all else"}
_MOST_LAYERS: Final = 60
_MOST_TYPES: Final = 3


def draw(facts: Facts, path: Path) -> None:
    """Draws a report.

    Args:
        facts: What `gather` found.
        path: Where to write the PNG.

    Raises:
        NeuzipError: If matplotlib is not installed.
    """
    try:
        # Without pyplot, which would look for a screen.
        figures: Any = import_module("matplotlib.figure")
    except ImportError as error:
        message = "a PNG needs the package matplotlib: pip install matplotlib"
        raise NeuzipError(message) from error
    layers = _fewer(facts.layers())
    types = [g for g in facts.types() if g.exponents is not None and g.exponents.elements]
    types = types[:_MOST_TYPES]
    height = max(4.0, 1.6 + 0.24 * len(layers))
    rows = max(1, len(types))
    height = max(height, 2.6 * rows)
    figure = figures.Figure(figsize=(11, height), layout="constrained")
    grid = figure.add_gridspec(rows, 2, width_ratios=(1.15, 1))
    _draw_layers(figure.add_subplot(grid[:, 0]), layers)
    for row, group in enumerate(types):
        _draw_exponents(figure.add_subplot(grid[row, 1]), group)
    verb = "would be about" if facts.estimated else "compressed"
    figure.suptitle(
        f"{printable(facts.name)}: {size(facts.original_bytes)}, {verb} "
        f"{size(facts.stored_bytes)} ({percent(facts.stored_bytes, facts.original_bytes)})",
        fontsize=12,
    )
    # No name and date of the program in the file: equal models give equal pictures.
    figure.savefig(path, dpi=144, format="png", metadata={"Software": None})


def _draw_layers(axes: Any, layers: list[Group]) -> None:  # noqa: ANN401 - matplotlib's
    places = range(len(layers))
    left = [0.0] * len(layers)
    for part, colour in _COLOURS.items():
        widths = [100 * g.parts()[part] / max(1, g.original_bytes) for g in layers]
        axes.barh(places, widths, left=left, color=colour, label=_MEANINGS[part])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, group in zip(places, layers, strict=True):
        text = f"{100 * group.ratio:.1f}"
        axes.text(left[place] + 1, place, text, va="center", fontsize=7)
    axes.set_yticks(places, [_short(group.name) for group in layers], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max([100.0, *left]) * 1.08)
    axes.set_xlabel("% of the original size", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8, frameon=False)


def _draw_exponents(axes: Any, group: Group) -> None:  # noqa: ANN401 - matplotlib's
    histogram = group.exponents
    if histogram is None:
        return
    shares = histogram.common()
    axes.bar([e for e, _ in shares], [100 * s for _, s in shares], width=0.9, color="#0072b2")
    axes.set_title(
        f"{group.name}: {histogram.entropy:.2f} bits of entropy in an exponent of {histogram.bits}",
        fontsize=9,
    )
    axes.set_xlabel("stored exponent", fontsize=8)
    axes.set_ylabel("% of the elements", fontsize=8)
    axes.tick_params(labelsize=7)


def _fewer(layers: list[Group]) -> list[Group]:
    """At most so many that their names can be read: neighbours are put together."""
    if len(layers) <= _MOST_LAYERS:
        return layers
    step = -(-len(layers) // _MOST_LAYERS)
    return [
        Group(
            f"{run[0].name} … {run[-1].name}" if len(run) > 1 else run[0].name,
            tuple(tensor for group in run for tensor in group.tensors),
        )
        for run in (layers[i : i + step] for i in range(0, len(layers), step))
    ]


def _short(name: str, most: int = 40) -> str:
    name = printable(name)
    # A dollar sign would begin a formula.
    return (name if len(name) <= most else "…" + name[1 - most :]).replace("$", r"\$")
