"""Golden files: what a release has written must stay readable, and what it writes must not drift.

Until 0.1.0 is tagged the files may be written anew: `python -m tests.python.test_compatibility`
from the root of the repository. From then on files are only added, in a folder of their version.
"""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import neuzip_rs as nz
from tests.python import golden, second_files
from tests.python import second_decoder as page
from tests.python.second_delta import decode_delta
from tests.python.second_reader import original

ROOT = Path(__file__).parents[2]

NAMES = [
    *golden.tensors(),
    *(f"{d}.{level}" for d, level in product(golden.dtypes(), golden.LEVELS)),
]


def stored(name: str) -> bytes:
    return (golden.DATA / name).read_bytes()


@pytest.fixture(scope="module")
def hashes() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(golden.HASHES.read_text())
    return found


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[bytes, bytes]]:
    """Original and stream of each golden stream, as they are made now."""
    return {name: (original, stream) for name, original, stream in golden.streams()}


# --- what was written stays readable ----------------------------------------------------------


def test_the_golden_files_are_those_of_the_release(hashes: dict[str, dict[str, str]]) -> None:
    found = {path: golden.digest(stored(path)) for path in golden.golden_files()}
    assert found == hashes["files"]


def test_they_decode_to_the_same_bytes_for_ever(hashes: dict[str, dict[str, str]]) -> None:
    """By hashes, so that nothing that makes the originals today can hide a change."""
    found = {path: golden.digest(data) for path, data in golden.originals().items()}
    assert found == hashes["originals"]


@pytest.mark.parametrize("name", NAMES)
def test_golden_streams_decode(name: str, written: dict[str, tuple[bytes, bytes]]) -> None:
    """To what they were made from, with type and shape, by the second decoder too."""
    expected, base = written[name][0], golden.base_of(name)
    stream = stored(f"{name}.nzt")
    opened = nz.CompressedTensor.from_bytes(stream)
    if "." in name:
        dtype = name.partition(".")[0]
        assert (opened.dtype, opened.shape) == (dtype, (len(expected) // golden.dtypes()[dtype],))
    else:
        array = golden.tensors()[name]
        assert (opened.dtype, opened.shape) == (golden.dtype_of(name, array), array.shape)
    assert (opened.base_hash is None) == (base is None)
    assert bytes(nz.decompress(opened, framework="bytes", base=base)) == expected
    assert (page.decode(stream) if base is None else decode_delta(stream, base)) == expected


def test_golden_files_decode_with_the_second_reader() -> None:
    """Which finds the base of the deltas by itself."""
    for name, expected in golden.plain_files().items():
        assert original(golden.DATA / name) == expected


def test_the_second_reader_as_a_program(tmp_path: Path) -> None:
    """Without the package: in an interpreter that has only xxhash."""
    name, restored = "delta.nz.safetensors", tmp_path / "restored"
    command = [sys.executable, "-m", "tests.python.second_reader", golden.DATA / name]
    base = golden.DATA / "plain.nz.safetensors"
    subprocess.run([*command, "-o", restored, "--base", base], cwd=ROOT, check=True)
    assert restored.read_bytes() == golden.plain_files()[name]
    damaged = tmp_path / name
    damaged.write_bytes(stored(name)[:-1])
    command[-1] = damaged
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not as the page has it" in done.stderr
    program = "import sys, tests.python.second_reader; print('neuzip_rs' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_the_golden_folder_decodes_with_the_second_reader() -> None:
    names = [name for name in golden.golden_files() if name.startswith(golden.FOLDER)]
    restored = {
        name.removeprefix(f"{golden.FOLDER}/"): stored(name)
        if second_files.kind(stored(name)) == "other"
        else original(golden.DATA / name)
        for name in names
    }
    del restored["neuzip_manifest.json"]
    assert restored == golden.folder_files()


# --- nothing is missing -----------------------------------------------------------------------


def test_every_dtype_is_there_at_every_level_in_every_storage() -> None:
    assert len(golden.dtypes()) == len(page.ITEMSIZE)
    for dtype, level in product(golden.dtypes(), golden.LEVELS):
        stream = page.parse(stored(f"{dtype}.{level}.nzt"))
        assert stream.dtype == [*golden.dtypes()].index(dtype)
        storages = [min(storage, page.FIRST_MODEL) for storage in stream.storages]
        assert storages == [page.FIRST_MODEL, page.CONSTANT_CHUNK, page.RAW_CHUNK], (dtype, level)


def test_everything_the_page_describes_is_used() -> None:
    used: set[str] = set()
    for name in golden.golden_files():
        if name.endswith(".nzt"):
            used |= golden.uses(stored(name))
        else:
            used |= golden.uses_of_file(stored(name))
    assert golden.EVERYTHING - used == set()
    assert used - golden.EVERYTHING == set(), "new in the format: add it to EVERYTHING"


# --- what is written does not drift -----------------------------------------------------------


def test_the_encoder_has_not_drifted(written: dict[str, tuple[bytes, bytes]]) -> None:
    """Equal input gives equal bytes, also from one release to the next of the same format."""
    for name, (_, stream) in written.items():
        assert stream == stored(f"{name}.nzt"), name


def test_the_files_have_not_drifted(tmp_path: Path) -> None:
    golden.write_files(tmp_path)
    found = {
        path.relative_to(tmp_path).as_posix(): path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    expected = {name: stored(name) for name in golden.golden_files() if not name.endswith(".nzt")}
    assert found.keys() == expected.keys()
    for name, data in found.items():
        assert data == expected[name], name


if __name__ == "__main__":
    sys.stdout.write(f"{golden.write()} files in {golden.DATA.name}\n")
