"""The plot of size against speed: an SVG that reads on light and on dark pages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from benches import targets
from benches.paired import COMPRESS
from benches.speed_page import best_decoders

if TYPE_CHECKING:
    from pathlib import Path

    from benches.paired import Result

# Grey with a contrast of about 4.5 on white and on GitHub's dark background alike; ours in one
# colour that does the same.
GREY = "#7a828c"
OURS = "#d9730d"
POINT_SIZE = 46
# What saves next to nothing is named below the plot and not drawn, which would squeeze the rest.
LARGEST_PERCENT = 95
# Where a label may stand around its point, in points: right, left, above, below, and further out.
PLACES = (
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (8, 11, "left", "bottom"),
    (8, -11, "left", "top"),
    (-8, 11, "right", "bottom"),
    (-8, -11, "right", "top"),
    (0, 22, "center", "bottom"),
    (0, -22, "center", "top"),
)


def draw(result: Result, note: str, path: Path) -> None:
    """Draws size against speed, one panel for each direction.

    Args:
        result: One case; memcpy is the unit of speed and no codec.
        note: What was measured on what, under the plot.
        path: The SVG file to write.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt = importlib.import_module("matplotlib.pyplot")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "neuzip",
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": GREY,
        "axes.labelcolor": GREY,
        "axes.edgecolor": GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
    }
    with plt.rc_context(settings):
        figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
        decoders = dict(best_decoders(result))
        for panel, title, actions in (
            (axes[0], "decode", decoders),
            (axes[1], "encode", dict.fromkeys(decoders, COMPRESS)),
        ):
            _panel(panel, result, actions)
            panel.set_title(title, color=GREY)
            panel.set_xlabel("speed, times memcpy (log scale), faster →")
        axes[0].set_ylabel("size, % of the original, smaller ↓")
        hidden = [
            f"{codec} {_percent(result, codec):.0f} %"
            for codec in decoders
            if _percent(result, codec) > LARGEST_PERCENT and not codec.startswith("memcpy")
        ]
        if hidden:
            note = f"{note}; not shown: {', '.join(hidden)}"
        figure.supxlabel(note, color=GREY, fontsize=9)
        for panel in axes:
            _labels(figure, panel)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)


def _panel(panel: Any, result: Result, actions: dict[str, str]) -> None:  # noqa: ANN401
    points = []
    for codec, action in actions.items():
        ratio = result.ratio((codec, action), targets.MEMCPY)
        size = _percent(result, codec)
        if ratio is None or codec.startswith("memcpy") or size > LARGEST_PERCENT:
            continue
        ours = codec.startswith("neuzip")
        points.append((ratio.median, size, codec, ours))
        panel.scatter(
            [ratio.median],
            [size],
            s=POINT_SIZE,
            color=OURS if ours else GREY,
            marker="D" if ours else "o",
            zorder=3,
        )
    panel.set_xscale("log")
    speeds = [speed for speed, *_ in points]
    panel.set_xlim(min(*speeds, 0.05) / 2, max(*speeds, 1.0) * 3)
    sizes = [size for _, size, *_ in points]
    panel.set_ylim(min(sizes) - 3, max(sizes) + 3)
    panel.axvline(1.0, color=GREY, linestyle="--", linewidth=1)
    panel.text(1.0, 0.98, " memcpy", transform=panel.get_xaxis_transform(), va="top", color=GREY)
    ticker = importlib.import_module("matplotlib.ticker")
    panel.xaxis.set_major_formatter(ticker.FuncFormatter(_times))
    panel.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    panel.grid(visible=True, which="major", color=GREY, alpha=0.25, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.neuzip_points = points


def _percent(result: Result, codec: str) -> float:
    return 100 * result.sizes[codec] / result.original_bytes


def _times(value: float, _position: int) -> str:
    return f"{value:g}x"


def _labels(figure: Any, panel: Any) -> None:  # noqa: ANN401
    """Names the points, each where its name covers nothing that is there already."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    transforms = importlib.import_module("matplotlib.transforms")
    taken = []
    for speed, size, *_ in panel.neuzip_points:
        x, y = panel.transData.transform((speed, size))
        taken.append(transforms.Bbox.from_extents(x - 6, y - 6, x + 6, y + 6))
    inside = panel.get_window_extent(renderer)
    # Ours first: they get the best places.
    for speed, size, codec, ours in sorted(panel.neuzip_points, key=lambda point: not point[3]):
        best: tuple[int, Any, Any] | None = None
        for dx, dy, ha, va in PLACES:
            label = panel.annotate(
                codec,
                (speed, size),
                (dx, dy),
                textcoords="offset points",
                ha=ha,
                va=va,
                color=OURS if ours else GREY,
                weight="bold" if ours else "normal",
            )
            box = label.get_window_extent(renderer)
            label.set_in_layout(False)
            covered = sum(box.overlaps(other) for other in taken)
            covered += 3 * (box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0)
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = (covered, label, box)
            else:
                label.remove()
            if covered == 0:
                break
        if best is not None:
            taken.append(best[2])
