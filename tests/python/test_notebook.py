"""docs/quickstart.ipynb: every cell runs, in its order."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"


def test_cells_run_in_their_order() -> None:
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    names: dict[str, object] = {}
    for number, cell in enumerate(cells):
        assert not cell["outputs"], "outputs are not kept: they name machines and times"
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
