"""`neuzip report`: what the page says, and how a real browser shows it."""

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from neuzip_rs.directory import compress_directory
from neuzip_rs.report import gather, page
from neuzip_rs.report.facts import layer_of, natural
from tests.python import command
from tests.python.command import neuzip, objects, weights
from tests.python.integrations import browser
from tests.python.integrations.howto import follow

HOSTILE = '<img src=x onerror="alert(1)">&\x1b[31m"\''
PHONE, LAPTOP = 375, 1366


def model_bytes(layers: int = 12, extra: tuple[str, ...] = ()) -> bytes:
    """A decoder with weights that differ from layer to layer, in two types."""
    parts: list[tuple[str, str, list[int], bytes]] = [
        ("model.embed_tokens.weight", "BF16", [320, 64], weights(320 * 64, seed=1)),
        ("model.norm.weight", "F32", [64], weights(64, dtype="F32", seed=2)),
        ("lm_head.scale", "F32", [64, 64], weights(4096, dtype="F32", seed=3)),
        ("zeros", "BF16", [4096], bytes(8192)),
    ]
    for layer in range(layers):
        for part in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{part}.weight"
            parts.append((name, "BF16", [64, 96], weights(64 * 96, seed=10 + layer)))
    parts += [(name, "BF16", [64], weights(64, seed=4)) for name in extra]
    header: dict[str, object] = {}
    position = 0
    for name, dtype, shape, data in parts:
        header[name] = {"dtype": dtype, "shape": shape}
        header[name]["data_offsets"] = [position, position + len(data)]  # type: ignore[index]
        position += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in parts)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(model_bytes(extra=(HOSTILE, "x" * 300)))
    return file


def test_numbers_are_those_of_the_other_commands(model: Path, tmp_path: Path) -> None:
    neuzip("compress", model)
    compressed = tmp_path / "model.nz.safetensors"
    told = objects(neuzip("info", compressed, "--measure", "--json"))[0]
    facts = gather(compressed)
    assert (facts.original_bytes, facts.stored_bytes) == (
        model.stat().st_size,
        compressed.stat().st_size,
    )
    assert [tensor["name"] for tensor in facts.tensors] == [t["name"] for t in told["tensors"]]
    assert sum(group.stored_bytes for group in facts.layers()) == sum(
        tensor["compressed_bytes"] for tensor in told["tensors"]
    )
    for group in facts.layers():
        assert sum(group.parts().values()) == group.stored_bytes
    estimated = gather(model)
    assert estimated.estimated
    assert not facts.estimated
    assert abs(estimated.stored_bytes - facts.stored_bytes) < 0.02 * facts.stored_bytes
    assert [group.name for group in estimated.layers()] == [g.name for g in facts.layers()]


def test_histograms_count_every_exponent(model: Path) -> None:
    facts = gather(model)
    values = np.frombuffer(weights(320 * 64, seed=1), "<u2")
    exponents = (values >> 7) & 255
    histogram = facts.histograms["bfloat16"]["model.embed_tokens.weight"]
    assert (histogram.counts == np.bincount(exponents, minlength=256)).all()
    shares = np.bincount(exponents) / values.size
    shares = shares[shares > 0]
    assert math.isclose(histogram.entropy, -(shares * np.log2(shares)).sum())
    assert sum(share for _, share in histogram.shares()) == pytest.approx(1)
    assert facts.histograms["bfloat16"]["zeros"].entropy == 0


def test_layers_are_those_of_the_names(model: Path) -> None:
    names = [group.name for group in gather(model).layers()]
    assert [name for name in names if name.startswith("model.layers")] == [
        f"model.layers.{index}" for index in range(12)
    ]
    assert {"model.embed_tokens", "model.norm", "lm_head"} <= set(names)
    assert layer_of("h.0.attn.weight") == "h.0"
    assert layer_of("decoder/layer_3/linear/weight") == "decoder/layer_3"
    assert layer_of("weight") == "weight"
    assert sorted(["a.10.b", "a.2.b"], key=natural) == ["a.2.b", "a.10.b"]


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name in ("src", "srcset") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_else_and_believes_no_name(model: Path) -> None:
    text = page(gather(model))
    words = _Words()
    words.feed(text)
    assert not {"script", "img", "iframe", "object", "form"} & {*words.tags}
    assert not re.search(r"url\(|@import|https?://", text)
    assert '<img src=x onerror="alert(1)">&\\x1b[31m' in words.text
    assert text == page(gather(model)), "equal models give equal pages"


@pytest.mark.parametrize(
    "kind", ["directory", "compressed directory", ".nz", "empty", "no tensors"]
)
def test_whatever_neuzip_reads(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    if kind in ("directory", "compressed directory"):
        source.mkdir()
        for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
            (source / shard).write_bytes(model_bytes(2, (shard,)))
        (source / "config.json").write_text("{}")
        if kind == "compressed directory":
            compress_directory(source, tmp_path / "source-nz")
            source = tmp_path / "source-nz"
    elif kind == ".nz":
        source.write_bytes(command.npz_bytes())
        neuzip("compress", source)
        source = tmp_path / "source.nz"
    elif kind == "no tensors":
        source.write_bytes((2).to_bytes(8, "little") + b"{}")
    else:
        source.write_bytes(b"")
    done = neuzip("report", source, "-o", tmp_path / "out.html", "--json")
    facts = objects(done)[0]
    assert facts["estimated"] == (kind in ("directory", "empty", "no tensors"))
    _Words().feed((tmp_path / "out.html").read_text())


def test_command(model: Path, tmp_path: Path) -> None:
    neuzip("report", model, cwd=tmp_path)
    target = tmp_path / "model.safetensors.report.html"
    assert target.read_text() == page(gather(model))
    assert b"exists already" in neuzip("report", model, cwd=tmp_path, expect=1).stderr
    neuzip("report", model, "-f", cwd=tmp_path)
    neuzip("report", "-", expect=2)
    neuzip("report", model, "-o", model, "-f", expect=2)
    neuzip("report", tmp_path / "nothing", expect=1)
    damaged = bytearray((tmp_path / "model.safetensors").read_bytes())
    neuzip("compress", model)
    compressed = tmp_path / "model.nz.safetensors"
    damaged = bytearray(compressed.read_bytes())
    damaged[-40] ^= 1
    compressed.write_bytes(damaged)
    done = neuzip("report", compressed, "-o", tmp_path / "bad.html", expect=1)
    assert done.stderr
    assert not (tmp_path / "bad.html").exists()


def test_png(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    image = pytest.importorskip("PIL.Image")
    for name in ("first.png", "second.png"):
        neuzip("report", model, "-o", tmp_path / "r.html", "--png", tmp_path / name, "-f")
    first = (tmp_path / "first.png").read_bytes()
    assert first == (tmp_path / "second.png").read_bytes()
    picture = image.open(tmp_path / "first.png").convert("RGB")
    assert picture.width > 1200
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    assert {(0, 114, 178), (230, 159, 0)} <= colours, "bars are missing"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with browser.running(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, LAPTOP], ids=["phone", "laptop"])
def test_in_a_browser(
    chromium: browser.Browser, model: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    target = tmp_path / "report.html"
    target.write_text(page(gather(model)))
    chromium.requests.clear()
    chromium.complaints.clear()
    chromium.open(target, width=width, dark=dark)
    assert chromium.complaints == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:"))] == []
    assert chromium.evaluate("document.querySelectorAll('script, img').length") == 0
    # Nothing sticks out at the side, but what scrolls by itself.
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate("document.querySelector('.scroll').scrollWidth") > 0
    smallest = chromium.evaluate(
        "Math.min(...[...document.querySelectorAll('main *')]"
        ".filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12, "words too small to be read"
    # Every bar can be seen: it has a size, and a colour that stands out from what is behind it.
    bars = chromium.evaluate(
        "[...document.querySelectorAll('.track > .coded, .track > .raw')].map(e => {"
        "const box = e.getBoundingClientRect(), behind = e.parentElement.getBoundingClientRect();"
        "return [box.width, box.height, behind.width, getComputedStyle(e).backgroundColor,"
        " getComputedStyle(e.parentElement).backgroundColor]})"
    )
    assert len(bars) > 20
    assert all(high >= 16 and 0 < wide <= room + 1 for wide, high, room, *_ in bars)
    assert all(contrast(front, back) >= 1.7 for *_, front, back in bars)
    columns = chromium.evaluate(
        "[...document.querySelectorAll('.histogram span')]"
        ".map(e => e.getBoundingClientRect()).map(b => [b.width, b.height])"
    )
    assert len(columns) > 10
    assert max(high for _, high in columns) > 150
    assert min(wide for wide, _ in columns) >= 1
    overlaps = chromium.evaluate(
        "[...document.querySelectorAll('.row')].filter(r => {"
        "const boxes = [...r.children].map(e => e.getBoundingClientRect());"
        "return boxes.some((a, i) => boxes.some((b, j) => i < j && a.left < b.right - 1 &&"
        " b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1))}).length"
    )
    assert overlaps == 0
    words = [("body", 7.0), (".note", 4.5), (".value", 7.0), ("small", 4.5)]
    for selector, least in words:
        front, back = chromium.evaluate(
            f"[getComputedStyle(document.querySelector('{selector}')).color,"
            " getComputedStyle(document.body).backgroundColor]"
        )
        assert contrast(front, back) >= least, selector
    kept = os.environ.get("NEUZIP_SCREENSHOTS")
    if kept:
        name = f"report-{width}-{'dark' if dark else 'light'}.png"
        chromium.screenshot(Path(kept) / name)


def contrast(front: str, back: str) -> float:
    """The contrast of two CSS colours, 1 to 21, as in the guidelines for accessible pages."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(front), luminance(back)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_page_of_instructions(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(model_bytes(2))
    paths = os.pathsep.join(path for path in sys.path if path)
    assert follow("report.md", tmp_path, command.environment(PYTHONPATH=paths)) == 1
    assert {"report.html", "report-nz.html", "report.png"} <= {
        file.name for file in tmp_path.iterdir()
    }
