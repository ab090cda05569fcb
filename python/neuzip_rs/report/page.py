"""The report as one page of HTML: no scripts, no fonts, no network; bars are boxes.

Bars are boxes and not pictures, so that words keep their size on a phone.
"""

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, Final

from neuzip_rs import __version__
from neuzip_rs.cli.report import percent, printable, size
from neuzip_rs.report.exponents import Histogram
from neuzip_rs.report.facts import Facts, Group
from neuzip_rs.report.style import STYLE

_PARTS: Final = {
    "coded": "entropy-coded bits",
    "raw": "bits as they are",
    "other": "headers, tables, scales, hashes",
}
_OPEN_TENSORS: Final = 40
"""So many rows of the table of tensors are shown without being asked for."""


def page(facts: Facts) -> str:
    """Renders a report.

    Args:
        facts: What `gather` found.

    Returns:
        A complete HTML document.
    """
    title = f"{_text(facts.name)}: where the bits go"
    body = "\n".join(
        part
        for section in (_head, _types, _exponents, _layers, _tensors)
        for part in section(facts)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _head(facts: Facts) -> Iterator[str]:
    yield f"<h1>{_text(facts.name)}</h1>"
    verb = "would be about" if facts.estimated else "compressed"
    saved = 100 * (1 - facts.ratio)
    yield '<p class="lead">'
    yield f"{size(facts.original_bytes)}, {verb} <strong>{size(facts.stored_bytes)}</strong> "
    yield f"({percent(facts.stored_bytes, facts.original_bytes)}): {saved:.1f} % smaller, "
    yield "and every bit comes back.</p>"
    yield _bar(_whole(facts), scale=1.0, label="the whole model")
    yield '<ul class="legend">'
    for part, meaning in _PARTS.items():
        yield f'<li><span class="swatch {part}"></span>{meaning}</li>'
    yield '<li><span class="swatch saved"></span>saved</li></ul>'


def _whole(facts: Facts) -> Group:
    return Group(facts.name, facts.tensors)


def _types(facts: Facts) -> Iterator[str]:
    yield "<section>\n<h2>Fields</h2>"
    yield (
        "<p>Each type is split into fields of neighbouring bits. A field is coded where its "
        "entropy is well below its width, and left as it is where it is noise. The mark shows "
        "the entropy, the bar what is stored, the box the width.</p>"
    )
    for group in facts.types():
        yield f"<h3>{_text(group.name)}</h3>"
        yield f'<p class="note">{_count(group)}, {_sizes(group)}</p>'
        fields = [field for field in group.fields() if field["elements"]]
        if not fields:
            yield '<p class="note">Nothing is stored in fields: constants and repeats only.</p>'
        for field in sorted(fields, key=lambda field: -field["stored_bytes"]):
            yield _field(field, facts.stored_bytes)
    yield "</section>"


def _field(field: dict[str, Any], whole: int) -> str:
    stored = 8 * field["stored_bytes"] / field["elements"]
    known = field["entropy_bits"]
    entropy = field["table_bits"] if known is None else known
    width = max(float(field["bits"]), stored)
    mark = ""
    said = "entropy not measured"
    if entropy is not None:
        mark = f'<span class="mark" style="left:{min(100, 100 * entropy / width):.2f}%"></span>'
        said = f"entropy {entropy:.2f}"
    share = f"{percent(field['stored_bytes'], whole)} of all"
    kind = "coded" if field["mode"] == "coded" else "raw"
    return (
        f'<div class="row"><div class="name">{_text(field["name"])}'
        f"<small>{_text(field['mode'])}, {share}</small></div>"
        f'<div class="track"><span class="{kind}" style="width:{100 * stored / width:.2f}%"></span>'
        f'{mark}</div><div class="value">{stored:.2f} of {field["bits"]} bits'
        f"<small>{said}</small></div></div>"
    )


def _exponents(facts: Facts) -> Iterator[str]:
    groups = [group for group in facts.types() if group.exponents is not None]
    if not groups:
        return
    yield "<section>\n<h2>Exponents</h2>"
    yield (
        "<p>How often each exponent occurs. Few of them are common, so that an exponent carries "
        "far fewer bits than it has.</p>"
    )
    for group in groups:
        histogram = group.exponents
        if histogram is not None and histogram.elements:
            yield from _histogram(group.name, histogram)
    yield "</section>"


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    entropy, bits = histogram.entropy, histogram.bits
    yield f"<h3>{_text(name)}: {entropy:.2f} bits of entropy in {bits}</h3>"
    yield _gauge(entropy, bits)
    columns = histogram.common()
    top = max((share for _, share in columns), default=1.0)
    shown = f"exponents {columns[0][0]} to {columns[-1][0]}"
    yield f'<figure role="img" aria-label="Histogram of {shown}"><div class="histogram">'
    for exponent, share in columns:
        label = f"exponent {exponent}: {100 * share:.3g} %"
        yield f'<span title="{label}" style="height:{100 * share / top:.2f}%"></span>'
    yield (
        f'</div><div class="axis"><span>{columns[0][0]}</span><span>stored exponent</span>'
        f"<span>{columns[-1][0]}</span></div>"
    )
    outside = 1 - sum(share for _, share in columns)
    rest = f"; {100 * outside:.2g} % are outside of what is drawn" if outside > 5e-7 else ""
    yield (
        f"<figcaption>The tallest bar is {100 * top:.1f} % of {histogram.elements:,} elements"
        f"{rest}.</figcaption></figure>"
    )


def _gauge(entropy: float, bits: int) -> str:
    return (
        f'<div class="row"><div class="name">entropy</div><div class="track"><span class="coded" '
        f'style="width:{100 * entropy / bits:.2f}%"></span></div>'
        f'<div class="value">{entropy:.2f} of {bits} bits</div></div>'
    )


def _layers(facts: Facts) -> Iterator[str]:
    layers = facts.layers()
    yield "<section>\n<h2>Layers</h2>"
    yield "<p>Size after compressing, in percent of the size before.</p>"
    scale = max([1.0, *(layer.ratio for layer in layers)])
    for layer in layers:
        yield (
            f'<div class="row"><div class="name">{_text(layer.name)}'
            f"<small>{_count(layer)}, {size(layer.original_bytes)}</small></div>"
            f"{_bar(layer, scale=scale, label=layer.name)}"
            f'<div class="value">{percent(layer.stored_bytes, layer.original_bytes)}</div></div>'
        )
    yield "</section>"


def _bar(group: Group, *, scale: float, label: str) -> str:
    original = max(1, group.original_bytes)
    boxes = []
    for part, stored in group.parts().items():
        if stored > 0:
            said = f"{_PARTS[part]}: {percent(stored, group.original_bytes)}"
            width = 100 * stored / original / scale
            boxes.append(f'<span class="{part}" title="{said}" style="width:{width:.3f}%"></span>')
    said = f"{_text(label)}: {percent(group.stored_bytes, group.original_bytes)}"
    return f'<div class="track" role="img" aria-label="{said}">{"".join(boxes)}</div>'


def _tensors(facts: Facts) -> Iterator[str]:
    ordered = sorted(facts.tensors, key=lambda tensor: (-tensor["original_bytes"], tensor["name"]))
    yield "<section>\n<h2>Tensors</h2>"
    yield from _table(ordered[:_OPEN_TENSORS])
    if len(ordered) > _OPEN_TENSORS:
        rest = ordered[_OPEN_TENSORS:]
        yield f"<details><summary>{len(rest)} smaller ones</summary>"
        yield from _table(rest)
        yield "</details>"
    made = "estimated" if facts.estimated else "read"
    yield f'<p class="note">neuzip {_text(__version__)}; sizes {made}.</p>'
    yield "</section>"


def _table(tensors: Iterable[dict[str, Any]]) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr><th>tensor</th><th>type</th><th>shape</th>'
    yield '<th class="number">before</th><th class="number">after</th>'
    yield '<th class="number">%</th><th>stored as</th></tr></thead><tbody>'
    for tensor in tensors:
        original, stored = tensor["original_bytes"], tensor["compressed_bytes"]
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        yield (
            f'<tr><th scope="row">{_text(tensor["name"])}</th><td>{_text(tensor["dtype"])}</td>'
            f'<td>{shape}</td><td class="number">{size(original)}</td>'
            f'<td class="number">{size(stored)}</td>'
            f'<td class="number">{100 * stored / max(1, original):.1f}</td>'
            f"<td>{_text(' '.join(tensor['modes'] or ()) or '-')}</td></tr>"
        )
    yield "</tbody></table></div>"


def _count(group: Group) -> str:
    count = len(group.tensors)
    return f"{count} tensor{'' if count == 1 else 's'}"


def _sizes(group: Group) -> str:
    after = f"{size(group.stored_bytes)} ({percent(group.stored_bytes, group.original_bytes)})"
    return f"{size(group.original_bytes)} → {after}"


def _text(text: str) -> str:
    """Text from a file, which may hold anything."""
    return escape(printable(text), quote=True)
