"""Pictures of where the bits of a model go: one page of HTML that needs nothing else, or a PNG.

    facts = gather(Path("model"))            # compressed or not, a file or a directory
    Path("report.html").write_text(page(facts))
    draw(facts, Path("report.png"))          # needs matplotlib

Equal models give equal pages: there are no times and no names of machines in them.
"""

from neuzip_rs.report.exponents import Histogram
from neuzip_rs.report.facts import Facts, gather
from neuzip_rs.report.page import page
from neuzip_rs.report.png import draw

__all__ = ["Facts", "Histogram", "draw", "gather", "page"]
