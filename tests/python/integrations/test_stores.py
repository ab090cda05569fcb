"""Files at URLs, on a real S3-compatible server and a real HTTP server, both on loopback."""

import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed")
pytest.importorskip("aiohttp", reason="aiohttp is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

import fsspec  # noqa: E402 - after the reasons to skip

import neuzip_rs as nz  # noqa: E402
from tests.python import command  # noqa: E402
from tests.python.integrations.howto import follow  # noqa: E402
from tests.python.integrations.servers import Counted, RangeServer, http_server  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

KIB = 1024


def tensors(seed: int = 0, scale: float = 0.02) -> dict[str, np.ndarray]:
    import ml_dtypes

    random = np.random.default_rng(seed)
    values = {
        f"layers.{n}.weight": (random.normal(size=(400, 300)) * scale).astype(ml_dtypes.bfloat16)
        for n in range(12)
    }
    values["embedding"] = (random.normal(size=(3000, 257)) * scale).astype(np.float32)
    values["tied"] = values["embedding"].copy()
    values["empty"] = np.empty((0, 3), np.float16)
    return values


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        np.asarray(found[name]).tobytes() == value.tobytes()
        and np.asarray(found[name]).shape == value.shape
        for name, value in expected.items()
    )


class S3:
    """A bucket, and the bytes that came from it."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.environment = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{counted.port}",
        }

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return fsspec.filesystem("s3")


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        counted = Counted(server.get_host_and_port()[1])
        yield S3(counted)
        counted.close()
        server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    # Instances are kept by fsspec, and hold the settings of their time.
    fsspec.filesystem("s3").clear_instance_cache()
    if not s3_server.fs.exists("bucket"):
        s3_server.fs.mkdir("bucket")
    return s3_server


@pytest.fixture
def web(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "web").mkdir()
    with http_server(tmp_path / "web") as server:
        yield server


def run(*arguments: object, s3: S3 | None = None, code: int = 0) -> subprocess.CompletedProcess:
    environment = {**os.environ, **(s3.environment if s3 else {})}
    command = [sys.executable, "-m", "neuzip_rs", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=120)
    assert result.returncode == code, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    return result


def test_tensors_at_s3(s3: S3) -> None:
    expected = tensors()
    url = "s3://bucket/a/model.nz.safetensors"
    nz.safetensors.save_file(expected, url, {"from": "here"})
    assert same(nz.safetensors.load_file(url, framework="np"), expected)
    with nz.safetensors.safe_open(url, "np") as file:
        assert file.metadata() == {"from": "here"}
        assert set(file.keys()) == set(expected)
        rows = file.get_slice("embedding")[100:103]
        assert rows.tobytes() == expected["embedding"][100:103].tobytes()
        assert file.get_tensor("empty").shape == (0, 3)


@pytest.mark.parametrize("name", ["layers.3.weight", "embedding", "tied", "empty"])
def test_one_tensor_costs_the_header_and_itself(
    s3: S3, web: RangeServer, tmp_path: Path, name: str
) -> None:
    expected = tensors()
    path = tmp_path / "web" / "model.nz.safetensors"
    nz.safetensors.save_file(expected, path)
    s3.fs.put_file(str(path), "bucket/b/model.nz.safetensors")
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    with nz.safetensors.safe_open(path, "np") as file:
        # What is stored once for two names is fetched where it is.
        stored = file._file.stored_nbytes("embedding" if name == "tied" else name)
        stored += file._file.stored_nbytes(name) if name == "tied" else 0
    total = path.stat().st_size
    for url, server in (
        ("s3://bucket/b/model.nz.safetensors", s3.counted),
        (f"{web.url}/model.nz.safetensors", web),
    ):
        before = server.sent
        with nz.safetensors.safe_open(url, "np") as file:
            assert file.get_tensor(name).tobytes() == expected[name].tobytes()
        spent = server.sent - before
        assert spent <= header + stored + 64 * KIB
        assert spent < total


@pytest.mark.parametrize(("dtype", "slack"), [("float32", 0), ("int8", 0), ("uint8", 64)])
def test_small_tensors_cost_no_more(
    s3: S3, web: RangeServer, tmp_path: Path, dtype: str, slack: int
) -> None:
    random = np.random.default_rng(5)
    shapes = [(64,), (64, 64), (256, 64), (7, 64), (128, 64), (3,)] * 20

    def values(shape: tuple[int, ...]) -> np.ndarray:
        if dtype == "uint8":
            # Nothing can be saved: bundles are as large as they may be, and the head of a stream.
            return random.integers(0, 256, shape, np.uint8)
        return (random.normal(0, 0.02 if dtype == "float32" else 30, shape)).astype(dtype)

    expected = {f"layers.{n:03}": values(shape) for n, shape in enumerate(shapes)}
    path = tmp_path / "web" / "small.nz.safetensors"
    nz.safetensors.save_file(expected, path)
    s3.fs.put_file(str(path), "bucket/b/small.nz.safetensors")
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    for number in (0, 1, 2, 9, 60, 100, 119):
        name = f"layers.{number:03}"
        with nz.safetensors.safe_open(path, "np") as file:
            stored = file._file.stored_nbytes(name)
            assert file._file.bundle(name) is not None
        for url in (f"{web.url}/small.nz.safetensors", "s3://bucket/b/small.nz.safetensors"):
            with nz.safetensors.safe_open(url, "np") as file:
                assert file.get_tensor(name).tobytes() == expected[name].tobytes()
                spent = file._file.transferred_bytes
            assert spent <= header + stored + 64 * KIB + slack
        before = web.sent
        with nz.safetensors.safe_open(f"{web.url}/small.nz.safetensors", "np") as file:
            assert file.get_slice(name)[:2].tobytes() == expected[name][:2].tobytes()
        assert web.sent - before <= header + stored + 64 * KIB + slack
    assert path.stat().st_size > 1 << 18


def test_plain_files_are_read_in_ranges_too(web: RangeServer, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    expected = {"a": np.arange(100_000, dtype=np.float32), "b": np.ones(500_000, np.float64)}
    safetensors.save_file(expected, tmp_path / "web" / "plain.safetensors")
    with nz.safetensors.safe_open(f"{web.url}/plain.safetensors", "np") as file:
        assert file.get_tensor("a").tobytes() == expected["a"].tobytes()
        assert file.get_slice("a")[5:9].tobytes() == expected["a"][5:9].tobytes()
    assert web.sent < 500 * KIB


def test_server_without_ranges(tmp_path: Path) -> None:
    expected = tensors()
    nz.safetensors.save_file(expected, tmp_path / "model.nz.safetensors")
    with http_server(tmp_path, ranges=False) as server:
        with nz.safetensors.safe_open(f"{server.url}/model.nz.safetensors", "np") as file:
            found = file.get_tensor("layers.1.weight")
        assert found.tobytes() == expected["layers.1.weight"].tobytes()


def test_download_decodes_as_it_streams(web: RangeServer, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    expected = {f"t{n:02}": random.integers(0, 256, 3 << 20, np.uint8) for n in range(8)}
    path = tmp_path / "web" / "large.nz.safetensors"
    nz.safetensors.save_file(expected, path)
    total = path.stat().st_size
    assert total > 20 << 20
    released = threading.Event()
    # The server sends the second half only when a tensor of the first has been decoded.
    web.gate = lambda sent: released.wait(60) if sent > total * 3 // 4 else None
    done: list[tuple[int, int]] = []

    def progress(count: int, _total: int) -> None:
        done.append((count, web.sent))
        if count > 3 << 20:
            released.set()

    target = tmp_path / "restored.safetensors"
    sizes = nz.safetensors.decompress_file(f"{web.url}/{path.name}", target, progress=progress)
    assert sizes[0] == total
    assert released.is_set()
    assert any(count > 3 << 20 and sent < total for count, sent in done)
    assert same(nz.safetensors.load_file(target, framework="np"), expected)


def test_frames_decode_as_they_stream(web: RangeServer, tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 200, 60 << 20, np.uint8).tobytes()
    with nz.open(tmp_path / "web" / "data.nz", "wb") as file:
        file.write(data)
    path = tmp_path / "web" / "data.nz"
    total = path.stat().st_size
    released = threading.Event()
    web.gate = lambda sent: released.wait(60) if sent > total - (8 << 20) else None
    progress = lambda count, _: released.set() if count >= 16 << 20 else None  # noqa: E731
    nz.safetensors.decompress_file(f"{web.url}/data.nz", tmp_path / "data", progress=progress)
    assert released.is_set()
    assert (tmp_path / "data").read_bytes() == data


def test_compress_and_decompress_file(s3: S3, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(tensors(), tmp_path / "m.safetensors")
    original = (tmp_path / "m.safetensors").read_bytes()
    s3.fs.pipe_file("bucket/c/m.safetensors", original)
    source, target = "s3://bucket/c/m.safetensors", "s3://bucket/c/m.nz.safetensors"
    sizes = nz.safetensors.compress_file(source, target)
    assert sizes[0] == len(original)
    assert nz.safetensors.verify_file(target) == (sizes[1], sizes[0])
    with pytest.raises(FileExistsError):
        nz.safetensors.compress_file(source, target)
    nz.safetensors.decompress_file(target, "s3://bucket/c/again.safetensors")
    assert s3.fs.cat_file("bucket/c/again.safetensors") == original
    with pytest.raises(nz.OutputTooLargeError):
        nz.safetensors.decompress_file(target, tmp_path / "x", max_output_size=1000)
    with pytest.raises(nz.CorruptDataError):
        nz.safetensors.decompress_file(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(FileNotFoundError):
        nz.safetensors.load_file("s3://bucket/nothing.safetensors", framework="np")


def test_base_at_a_url(s3: S3, tmp_path: Path) -> None:
    before, after = tensors(), tensors(scale=0.0200002)
    nz.safetensors.save_file(before, "s3://bucket/d/one/m.nz.safetensors")
    nz.safetensors.save_file(
        after,
        "s3://bucket/d/two/m.nz.safetensors",
        base="s3://bucket/d/one/m.nz.safetensors",
    )
    # Found where it is, relative to the file; also by one that is here.
    assert same(
        nz.safetensors.load_file("s3://bucket/d/two/m.nz.safetensors", framework="np"), after
    )
    s3.fs.get_file("bucket/d/two/m.nz.safetensors", str(tmp_path / "m.nz.safetensors"))
    found = nz.safetensors.load_file(
        tmp_path / "m.nz.safetensors", framework="np", base="s3://bucket/d/one/m.nz.safetensors"
    )
    assert same(found, after)
    assert s3.fs.size("bucket/d/two/m.nz.safetensors") < 0.7 * s3.fs.size(
        "bucket/d/one/m.nz.safetensors"
    )
    s3.fs.rm("bucket/d/one/m.nz.safetensors")
    with pytest.raises(nz.BaseMismatchError):
        nz.safetensors.load_file("s3://bucket/d/two/m.nz.safetensors", framework="np")


def test_tensors_of_other_files(web: RangeServer, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    import ml_dtypes

    random = np.random.default_rng(3)
    full = {f"t{n}": random.normal(size=(200, 300)).astype(np.float32) for n in range(6)}
    cast = {name: value.astype(ml_dtypes.bfloat16) for name, value in full.items()}
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.save_file(full, folder / "full.safetensors")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(value).to(torch.bfloat16) for name, value in full.items()}
    save_file(tensors, folder / "zcast.safetensors")
    run("compress", folder, "-o", tmp_path / "web" / "model")
    stored = tmp_path / "web" / "model"
    # The cast is only a reference to the full one.
    assert (stored / "zcast.safetensors").stat().st_size < 4 * KIB
    before = web.sent
    with nz.safetensors.safe_open(f"{web.url}/model/zcast.safetensors", "pt") as file:
        found = file.get_tensor("t3").view(torch.uint8).numpy()
    assert found.tobytes() == cast["t3"].tobytes()
    assert web.sent - before < (stored / "full.safetensors").stat().st_size // 3
    with nz.open(f"{web.url}/model/zcast.safetensors") as opened:
        assert opened.read() == (folder / "zcast.safetensors").read_bytes()


def test_state(s3: S3) -> None:
    state = {"step": 5, "weights": tensors(), "list": [1, "two", None]}
    nz.save(state, "s3://bucket/state.nz")
    found = nz.load("s3://bucket/state.nz")
    assert found["step"] == 5
    assert found["list"] == [1, "two", None]
    assert same(found["weights"], state["weights"])


def test_damage_on_the_way(web: RangeServer, tmp_path: Path) -> None:
    path = tmp_path / "web" / "model.nz.safetensors"
    nz.safetensors.save_file(tensors(), path)
    data = bytearray(path.read_bytes())
    for place in (3, 40, 2000, len(data) // 2, len(data) - 5):
        damaged = bytearray(data)
        damaged[place] ^= 0x41
        path.write_bytes(damaged)
        with pytest.raises(nz.NeuzipError):
            nz.safetensors.load_file(f"{web.url}/{path.name}", framework="np")
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(nz.CorruptDataError):
        nz.safetensors.load_file(f"{web.url}/{path.name}", framework="np")


@pytest.mark.parametrize("where", ["here", "s3", "http"])
def test_open_reads_what_the_original_was(
    s3: S3, web: RangeServer, tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "web"
    nz.safetensors.save_file(tensors(), folder / "m.nz.safetensors")
    nz.safetensors.decompress_file(folder / "m.nz.safetensors", folder / "m.safetensors")
    text = os.urandom(1 << 20) * 40
    with nz.open(folder / "text.nz", "wb") as file:
        for start in range(0, len(text), 999_983):
            file.write(text[start : start + 999_983])
    (folder / "plain.txt").write_bytes(b"as it is" * 1000)
    (folder / "tensor").write_bytes(bytes(nz.compress(np.arange(70_000))))
    originals = {
        "m.nz.safetensors": (folder / "m.safetensors").read_bytes(),
        "text.nz": text,
        "plain.txt": b"as it is" * 1000,
        "tensor": np.arange(70_000).tobytes(),
    }
    for name, original in originals.items():
        if where == "s3":
            s3.fs.put_file(str(folder / name), f"bucket/open/{name}")
        prefix = {"here": str(folder), "s3": "s3://bucket/open", "http": web.url}[where]
        with nz.open(f"{prefix}/{name}") as file:
            assert file.seekable()
            assert file.seek(0, os.SEEK_END) == len(original)
            for place in (len(original) // 2, 17, len(original) - 9):
                file.seek(place)
                assert file.read(9) == original[place : place + 9]
            file.seek(0)
            assert file.read() == original
            assert file.read(5) == b""


def test_open_reads_a_part_in_ranges(web: RangeServer, tmp_path: Path) -> None:
    data = np.random.default_rng(2).integers(0, 256, 64 << 20, np.uint8).tobytes()
    with nz.open(tmp_path / "web" / "data.nz", "wb") as file:
        file.write(data)
    with nz.open(f"{web.url}/data.nz") as file:
        file.seek(40 << 20)
        assert file.read(100) == data[40 << 20 :][:100]
    # One frame of four.
    assert web.sent < 18 << 20


def test_open_writes_to_s3_when_it_is_closed(s3: S3) -> None:
    with nz.open("s3://bucket/e/data.nz", "wb", level="fast") as file:
        file.write(b"0123456789" * 100_000)
        assert not s3.fs.exists("bucket/e/data.nz")
    with nz.open("s3://bucket/e/data.nz") as file:
        assert file.read() == b"0123456789" * 100_000
    with suppress(KeyError), nz.open("s3://bucket/e/half.nz", "wb") as file:
        file.write(b"half")
        raise KeyError
    s3.fs.invalidate_cache()
    assert not s3.fs.exists("bucket/e/half.nz")
    with pytest.raises(ValueError, match="mode"):
        nz.open("s3://bucket/e/data.nz", "ab")


def test_torch_loads_through_open(web: RangeServer, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    state = {"w": torch.randn(500, 300).to(torch.bfloat16), "b": torch.zeros(7)}
    with nz.open(tmp_path / "web" / "model.bin.nz", "wb") as file:
        torch.save(state, file)
    with nz.open(f"{web.url}/model.bin.nz") as file:
        found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_command_with_files(s3: S3, web: RangeServer, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(tensors(), tmp_path / "web" / "m.safetensors")
    original = (tmp_path / "web" / "m.safetensors").read_bytes()
    s3.fs.pipe_file("bucket/f/m.safetensors", original)
    said = run("compress", "s3://bucket/f/m.safetensors", "--json", s3=s3).stdout
    facts = json.loads(said)
    assert facts["path"] == "s3://bucket/f/m.safetensors"
    assert facts["output"] == "s3://bucket/f/m.nz.safetensors"
    again = run("compress", "s3://bucket/f/m.safetensors", s3=s3, code=1)
    assert b"s3://bucket/f/m.nz.safetensors" in again.stderr
    assert b"exists already" in again.stderr
    run("compress", "-f", "-q", "s3://bucket/f/m.safetensors", s3=s3)
    run("verify", "s3://bucket/f/m.nz.safetensors", s3=s3)
    info = run("info", "--json", "s3://bucket/f/m.nz.safetensors", s3=s3).stdout
    assert json.loads(info)["path"] == "s3://bucket/f/m.nz.safetensors"
    run("estimate", "-q", "s3://bucket/f/m.safetensors", s3=s3)
    reported = tmp_path / "report.html"
    said = run("report", "--json", "s3://bucket/f/m.nz.safetensors", "-o", reported, s3=s3).stdout
    assert json.loads(said)["path"] == "s3://bucket/f/m.nz.safetensors"
    page = "s3://bucket/f/report.html"
    said = run("report", "--json", f"{web.url}/m.safetensors", "-o", page, s3=s3).stdout
    assert json.loads(said)["output"] == page
    s3.fs.invalidate_cache()
    assert s3.fs.cat_file("bucket/f/report.html").startswith(b"<!doctype html>")
    assert reported.read_bytes().startswith(b"<!doctype html>")
    again = run("report", f"{web.url}/m.safetensors", "-o", page, s3=s3, code=1)
    assert b"s3://bucket/f/report.html: exists already" in again.stderr
    out = run("decompress", "s3://bucket/f/m.nz.safetensors", "-o", "-", s3=s3).stdout
    assert out == original
    run("decompress", "s3://bucket/f/m.nz.safetensors", "-o", "s3://bucket/g/", s3=s3)
    s3.fs.invalidate_cache()
    assert s3.fs.cat_file("bucket/g/m.safetensors") == original
    target = tmp_path / "x.nz.safetensors"
    run("compress", f"{web.url}/m.safetensors", "-o", target)
    assert nz.safetensors.verify_file(target)[1] == len(original)
    assert b"say with -o" in run("compress", f"{web.url}/m.safetensors", code=2).stderr
    assert b"--rm" in run("compress", "--rm", "s3://bucket/f/m.safetensors", s3=s3, code=2).stderr
    missing = run("compress", "s3://bucket/f/none.safetensors", s3=s3, code=1)
    assert b"bucket/f/none.safetensors" in missing.stderr


def test_command_with_folders_and_bases(s3: S3, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    for name, scale in (("step-1", 0.02), ("step-2", 0.0200002)):
        folder = tmp_path / name
        folder.mkdir()
        safetensors.save_file(tensors(scale=scale), folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        s3.fs.put(str(folder), f"bucket/h/{name}", recursive=True)
    run("compress", "s3://bucket/h/step-1", s3=s3)
    base = "s3://bucket/h/step-1-nz"
    run("compress", "s3://bucket/h/step-2", "--base", base, s3=s3)
    s3.fs.invalidate_cache()
    sizes = [s3.fs.size(f"bucket/h/step-{n}-nz/model.safetensors") for n in (1, 2)]
    assert sizes[1] < 0.7 * sizes[0]
    run("verify", "--base", base, "s3://bucket/h/step-2-nz", s3=s3)
    back = tmp_path / "back"
    run("decompress", "s3://bucket/h/step-2-nz", "--base", base, "-o", back, s3=s3)
    expected = (tmp_path / "step-2" / "model.safetensors").read_bytes()
    assert (back / "model.safetensors").read_bytes() == expected


def test_checkpoints_of_torch_at_s3(s3: S3) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from torch.distributed import checkpoint as dcp

    import neuzip_rs.dcp

    values = {"w": torch.randn(300, 200).to(torch.bfloat16), "step": 3}
    later = {"w": values["w"] + 0.0001, "step": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, state, base in (("one", values, None), ("two", later, "s3://bucket/i/one")):
            writer = neuzip_rs.dcp.writer(f"s3://bucket/i/{name}", base=base)
            dcp.save(state, storage_writer=writer, no_dist=True)
        found = {"w": torch.zeros_like(values["w"]), "step": 0}
        reader = neuzip_rs.dcp.reader("s3://bucket/i/two")
        dcp.load(found, storage_reader=reader, no_dist=True)
    assert found["step"] == 4
    assert torch.equal(found["w"], later["w"])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no such base"),
        (lambda path: path.write_text("no weights"), "a base is a .safetensors file"),
        (lambda path: path.mkdir(), "no .safetensors file in this base"),
    ],
)
def test_base_that_is_none(tmp_path: Path, make: object, said: str) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"a": np.ones(5)}, tmp_path / "m.safetensors")
    nz.safetensors.save_file({"a": np.ones(5)}, tmp_path / "c.nz.safetensors")
    base = tmp_path / "base"
    make(base)
    for verb, name in (
        ("compress", "m.safetensors"),
        ("decompress", "c.nz.safetensors"),
        ("verify", "c.nz.safetensors"),
    ):
        result = run(
            verb,
            tmp_path / name,
            "--base",
            base,
            "-f"[: 2 * (verb != "verify")] or "-q",
            code=1,
        )
        assert said in result.stderr.decode()
        assert str(base) in result.stderr.decode()
    error = FileNotFoundError if said == "no such base" else ValueError
    with pytest.raises(error, match=said):
        nz.safetensors.save_file({"a": np.ones(5)}, tmp_path / "x", base=base)
    with pytest.raises(error, match=said):
        nz.safetensors.load_file(tmp_path / "c.nz.safetensors", base=base)


GIVEN = """
import torch
import neuzip_rs as nz

tensors = {"model.embed_tokens.weight": torch.randn(64, 64).bfloat16()}
data = b"lines of a log" * 99
for step in (1, 2):
    nz.safetensors.save_file(tensors, f"s3://models/step-{step}-nz/model.safetensors")
    nz.safetensors.decompress_file(
        f"s3://models/step-{step}-nz/model.safetensors",
        f"s3://models/step-{step}/model.safetensors",
    )
nz.safetensors.decompress_file("s3://models/step-1-nz/model.safetensors", "web/m.safetensors")
nz.safetensors.decompress_file(
    "s3://models/step-1-nz/model.safetensors", "s3://models/m.safetensors"
)
nz.safetensors.compress_file("s3://models/m.safetensors", "s3://models/llama-nz/model.safetensors")
nz.save({"step": 3}, "web/state.nz")
torch.save(tensors, "pytorch_model.bin")
nz.safetensors.compress_file("pytorch_model.bin", "s3://models/pytorch_model.bin.nz")
"""


def test_page_of_instructions(s3: S3, web: RangeServer, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    s3.fs.mkdir("models")
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = command.environment(PYTHONPATH=paths, **s3.environment)
    hosts = {"https://example.org": web.url, "https://host": web.url}
    assert follow("stores.md", tmp_path, environment, given=GIVEN, hosts=hosts) == 2
    assert s3.fs.cat_file("models/m.html").startswith(b"<!doctype html>")
    assert (tmp_path / "m.nz.safetensors").is_file()
