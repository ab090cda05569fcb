"""What a release says of itself is the same everywhere."""

import re
import tomllib
from pathlib import Path

import neuzip_rs as nz

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_same_everywhere() -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text("utf-8"))["package"]["version"]
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## \[(\d.*?)\]", changes, re.MULTILINE)
    assert newest
    assert nz.__version__ == cargo == newest[1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" in project["dynamic"]


def test_the_pages_name_the_release_of_each_feature() -> None:
    """So that a bit that is added says since when there are readers for it."""
    text = (ROOT / "docs" / "format.md").read_text("utf-8")
    table = text.partition("| bit | name | set if |")[2].partition("\n\n")[0]
    listed = [int(bit) for bit in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    since = re.search(r"Bits 0 to (\d+) came with 0\.1\.0\.", text)
    assert since
    assert listed == [*range(int(since[1]) + 1)]
