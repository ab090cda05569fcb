"""What the golden files are made from, and what of the format they have in them.

`tests/data/v1` holds a stream for every element type at every level, streams for every way of
storing a tensor, and files and a folder that refer to each other. `hashes.json` has the hash of
every golden file and of what it decodes to.
"""

import hashlib
import io
import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

import neuzip_rs as nz
from neuzip_rs import _native
from neuzip_rs.directory import compress_directory, decompress_directory
from tests.python import second_decoder as page
from tests.python import second_files as files
from tests.python.second_delta import DeltaModel

DATA: Final = Path(__file__).resolve().parents[1] / "data" / "v1"
FORMAT: Final = Path(__file__).resolve().parents[2] / "docs" / "format.md"
HASHES: Final = DATA / "hashes.json"
FOLDER: Final = "models-nz"
LEVELS: Final = ("fast", "default", "max")
CHUNK_BYTES: Final = 4096


def noise(count: int) -> np.ndarray:
    """Numbers from -1 to 1, dense around 0, the same on every machine."""
    words = (np.arange(1, 4 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> 40
    uniform = words.astype(np.float64).reshape(count, 4) / 2**24 - 0.5
    return uniform.sum(axis=1) / 2


# --- one stream for each way of storing a tensor ----------------------------------------------


def records() -> np.ndarray:
    """Blocks like those of quantised models: bytes of a hash, and 4-bit numbers."""
    blocks = np.zeros((900, 24), np.uint8)
    blocks[:, :8] = np.frombuffer(hashlib.shake_128(b"").digest(7200), "u1").reshape(900, 8)
    numbers = np.clip(np.rint(noise(28800) * 9 + 8), 0, 15).astype(np.uint8).reshape(2, 900, 16)
    blocks[:, 8:] = numbers[0] | numbers[1] << 4
    return blocks.reshape(-1)


def tensors() -> dict[str, np.ndarray]:
    """One small tensor for each way of storing one; BF16 as the integers of its bits."""
    weights = noise(4608).astype(np.float32).reshape(48, 96)
    scales = np.exp2((np.arange(48) % 7)[:, None] - (np.arange(96) % 5)[None, :])
    rows, columns = np.arange(48), np.arange(96)
    bfloat16 = ((weights * scales.astype(np.float32)).view(np.uint32) >> 16).astype(np.uint16)
    upcast = (weights.view(np.uint32) & 0xFFFF0000).view(np.float32)
    square = noise(9216).astype(np.float32).reshape(96, 96)
    by_column = np.where(np.arange(96)[None, :] % 3, square, square**5)
    return {
        "empty": np.zeros((0, 3), np.float32),
        "raw": np.arange(40, dtype=np.uint8) * 37,
        "constant": np.full((300, 2), -0.0, np.float64),
        "float16": weights.astype(np.float16),
        "float32": weights,
        "float32_upcast": upcast,
        "float32_positive": np.abs(weights),
        "float64": weights.astype(np.float64)[:20],
        "uint16": bfloat16,
        "bfloat16_scaled": bfloat16,
        "int64": (np.arange(600) % 7 - 3).astype(np.int64),
        "complex64": weights.view(np.complex64),
        "bool": np.arange(5000) % 3 == 0,
        "phase": np.frombuffer(b"\7\7\7" + weights.tobytes() + b"\7", np.uint8),
        "records": records(),
        "delta_float32": weights,
        "delta_far": weights,
        "delta_int16": (noise(4000) * 3000).astype(np.int16),
        "delta_same": weights[:40],
        "delta_upcast": upcast,
        "bfloat16_delta": bfloat16,
        "max_symbols": (1 + weights / 50).astype(np.float16),
        "max_signs": (np.abs(weights) * np.outer(rows % 5 - 1.5, columns % 7 - 2.5)).astype("f2"),
        "max_classes": np.where(np.arange(48)[:, None] % 3, weights, weights**5).astype(np.float16),
        "max_columns": by_column.astype(np.float16),
    }


def level_of(name: str) -> str:
    """The level a golden stream is written at."""
    return "max" if name.startswith("max") else "default"


def dtype_of(name: str, array: np.ndarray) -> str:
    """The type a golden stream says it has."""
    return "bfloat16" if name.startswith("bfloat16") else array.dtype.name


def bases() -> dict[str, np.ndarray]:
    """What tensors are stored as the differences from: some bits, many bits, none."""
    before = noise(9216).astype(np.float32)[4608:].reshape(48, 96)
    near = tensors()["delta_float32"] * np.float32(1 - 2**-12)
    bits = tensors()["bfloat16_delta"] - (np.arange(4608).reshape(48, 96) % 5 == 0)
    upcast = tensors()["delta_upcast"].view(np.uint32)
    step = (np.arange(4608, dtype=np.uint32).reshape(48, 96) % 3) << np.uint32(16)
    return {
        "delta_float32": near,
        "delta_far": before / 8 + tensors()["delta_far"],
        "delta_int16": tensors()["delta_int16"] - (np.arange(4000) % 3).astype(np.int16),
        "delta_same": tensors()["delta_same"],
        "delta_upcast": (upcast + step).view(np.float32),
        "bfloat16_delta": bits.astype(np.uint16),
    }


def base_of(name: str) -> bytes | None:
    """The bytes of the base of a tensor, None if it has none."""
    base = bases().get(name)
    return None if base is None else base.tobytes()


# --- one stream for each element type and level -----------------------------------------------


def dtypes() -> dict[str, int]:
    """Every element type of the format, with its bytes, from the page."""
    rows = re.findall(r"\| (\d+) \| (\w+) \| (\d+) (?=\|)", FORMAT.read_text(encoding="utf-8"))
    return {name: int(size) for _, name, size in sorted(rows, key=lambda row: int(row[0]))}


def elements(dtype: str, count: int) -> bytes:
    """Elements as a model might have them; of small floats those of wider ones' upper bits."""
    pairs = "complex" in dtype
    values = noise(2 * count if pairs else count)
    bits = int(re.findall(r"\d+", dtype)[0]) if dtype != "bool" else 1
    if bits == 1:
        return (values > 0.1).astype(np.uint8).tobytes()
    if "int" in dtype:
        numbers = np.rint(values * min(40, 1 << bits - 1)).astype(np.int64)
        masked = numbers & 0xFF >> 8 - bits if bits < 8 else numbers
        return masked.astype(f"<i{max(bits, 8) // 8}" if bits > 8 else "u1").tobytes()
    if dtype in ("bfloat16", "bcomplex32"):
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype == "float8_e8m0fnu":
        return (values.astype("<f4").view("<u4") >> 23 & 255).astype("u1").tobytes()
    if bits <= 8:
        return (values.astype("<f2").view("<u2") >> 8 & (1 << bits) - 1).astype("u1").tobytes()
    return values.astype(f"<f{bits // 8 // (2 if pairs else 1)}").tobytes()


def of_dtype(dtype: str) -> bytes:
    """Three chunks: elements, the same element over and over, and bytes of a hash."""
    size = dtypes()[dtype]
    chunk = elements(dtype, CHUNK_BYTES // size)
    rest = hashlib.shake_128(dtype.encode()).digest(640)
    return chunk + chunk[:size] * (CHUNK_BYTES // size) + rest


# --- the golden streams, and what they have in them -------------------------------------------


def streams() -> Iterator[tuple[str, bytes, bytes]]:
    """Name, original and stream of every golden stream, as the package writes them now."""
    for name, array in tensors().items():
        data = array.tobytes()
        options: dict[str, Any] = {"level": level_of(name), "base": base_of(name)}
        yield name, data, compressed(data, dtype_of(name, array), array.shape, **options)
    for dtype, size in dtypes().items():
        data = of_dtype(dtype)
        for level in LEVELS:
            stream = compressed(data, dtype, (len(data) // size,), level=level)
            yield f"{dtype}.{level}", data, stream


def compressed(data: bytes, dtype: str, shape: tuple[int, ...], **options: Any) -> bytes:
    """A stream in small chunks, so that most streams have several; records need larger ones."""
    chunk_bytes = CHUNK_BYTES if len(data) < 5 * CHUNK_BYTES else 4 * CHUNK_BYTES
    return bytes(_native.compress(data, dtype, shape, chunk_bytes=chunk_bytes, **options))


def uses(stream: bytes) -> set[str]:
    """What of the format a stream uses, by words for what the page has numbers for."""
    found = page.parse(stream)
    bodies = ("chunked", "constant", "reference", "delta", "base", "external")
    words = {f"body {bodies[found.body]}"}
    words |= {f"feature {bit}" for bit in range(64) if found.features >> bit & 1}
    if found.body == page.EXTERNAL_BODY:
        words.add(f"derivation {found.derivation}")
    words.add("several chunks" if len(found.storages) > 1 else "one chunk at most")
    for storage in found.storages:
        number = storage - page.FIRST_MODEL - len(found.models)
        of_records = number >= 0 and found.body == page.CHUNKED_BODY
        kinds = ("raw", "constant", "model")
        words.add(f"stored {'records' if of_records else kinds[min(storage, 2)]}")
    for model in found.models:
        words.add(f"phase {'0' if model.phase == 0 else 'other'}")
        words.add(f"elements of {model.size}")
        for plane in model.planes:
            words |= words_of(plane)
    if found.offsets:
        words |= {f"list {bit}" for bit in range(6) if found.offsets.axes >> bit & 1}
    for layout in found.records:
        words |= {f"class of records {'raw' if m is None else 'model'}" for m in layout.models}
    if isinstance(found.delta, DeltaModel):
        words |= {f"relation {c.relation}" for c in found.delta.classes}
        words.add("one class" if len(found.delta.classes) == 1 else "several classes")
        words |= {"dropped bits"} if found.delta.dropped else set()
    return words


def words_of(plane: page.Plane) -> set[str]:
    """What of the format a plane uses."""
    modes = ("raw", "constant", "coded", "in contexts")
    words = {f"plane {modes[plane.mode]}"}
    if plane.table:
        words.add(f"plane coded {'with' if plane.table.escape else 'without'} escape")
    if plane.contexts:
        source = "classes" if plane.contexts.source == page.CLASSES else "a plane"
        words.add(f"contexts of {source}")
    return words


EVERYTHING: Final = {
    *(f"body {body}" for body in ("chunked", "constant", "reference", "delta", "base", "external")),
    *(f"feature {bit}" for bit in range(page.RECORDS.bit_length())),
    *(f"derivation {number}" for number in (page.SAME, page.ROUNDED, page.CUT_OFF)),
    *(f"stored {kind}" for kind in ("raw", "constant", "model", "records")),
    *(f"plane {mode}" for mode in ("raw", "constant", "coded", "in contexts")),
    *(f"list {bit}" for bit in range(page.COLUMN_CLASSES.bit_length())),
    *(f"elements of {size}" for size in (1, 2, 4, 8)),
    *(f"relation {number}" for number in range(3)),
    *("plane coded with escape", "plane coded without escape"),
    *("contexts of classes", "contexts of a plane", "phase 0", "phase other"),
    *("class of records raw", "class of records model", "dropped bits"),
    *("neuzip-file", "neuzip-safetensors", "a base is named", "a bundle"),
    "a repeat of what is in a bundle",
    *("one class", "several classes", "several chunks", "one chunk at most"),
}
"""What the golden streams must use between them: all that the page describes."""


# --- files and a folder -----------------------------------------------------------------------


def safetensors(parts: dict[str, tuple[str, np.ndarray]], gap: str = "") -> bytes:
    """A plain file of tensors by name, each with its type."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, array) in parts.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": dtype, "shape": [*array.shape], "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header).encode() + b" " * 3
    data = b"".join(array.tobytes() for _, array in parts.values())
    return len(text).to_bytes(8, "little") + text + data


def folder_files() -> dict[str, bytes]:
    """A folder in which files have the same tensors, as they are and cast."""
    wide = noise(2304).astype(np.float32).reshape(48, 48)
    wide[0, :4] = [np.inf, -0.0, 1e-42, 3e4]
    cut = (wide.view(np.uint32) >> 16).astype(np.uint16)
    rounded = wide.astype(np.float16)
    rounded[3, 3] += np.float16(1)
    weights = {"a.weight": ("F32", wide), "b.weight": ("F32", wide * 2), "tied": ("F32", wide)}
    first = safetensors(weights)
    return {
        "notes.txt": b"not compressed",
        "model.safetensors": first,
        "model.fp16.safetensors": safetensors({"a.weight": ("F16", rounded)}),
        "model.bf16.safetensors": safetensors({"a.weight": ("BF16", cut)}),
        "pytorch_model.bin": archive(wide.tobytes(), (wide * 2).tobytes()),
    }


def archive(*storages: bytes) -> bytes:
    """A file as torch.save writes it: bytes of tensors in a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        file.writestr(zipfile.ZipInfo("archive/data.pkl"), b"\x80\x02}q\x00.")
        for number, storage in enumerate(storages):
            file.writestr(zipfile.ZipInfo(f"archive/data/{number}"), storage)
    return stream.getvalue()


def plain_files() -> dict[str, bytes]:
    """Files that are compressed one by one, by the name of the golden file."""
    array = tensors()
    weights = {
        name: (dtype, array[name])
        for name, dtype in {
            "constant": "F64",
            "float32": "F32",
            "empty": "F32",
            "float16": "F16",
            "raw": "U8",
        }.items()
    }
    plain = safetensors(weights)
    changed = bytearray(plain)
    changed[-600::7] = bytes(byte ^ 1 for byte in changed[-600::7])
    return {
        "plain.nz.safetensors": plain,
        "small.nz.safetensors": safetensors(small_tensors()),
        "delta.nz.safetensors": bytes(changed),
        "plain.bin.nz": b"\0" + plain,
    }


def small_tensors() -> dict[str, tuple[str, np.ndarray]]:
    """Rows of 96, vectors, a scalar, a constant, a repeat and a tensor too large for a bundle."""
    weights = tensors()["float16"].reshape(-1)
    found, at = {}, 0
    for shape in [(10, 96), (96,), (20, 96), (), (5, 3, 3), (7, 3, 3), (33,), (2, 96)]:
        size = int(np.prod(shape))
        found[f"layer.{len(found)}"] = ("F16", weights[at : at + size].reshape(shape))
        at += size
    found["ones"] = ("F16", np.ones(200, np.float16))
    found["tied"] = found["layer.0"]
    found["large"] = ("F16", np.tile(weights, 9).reshape(432, 96))
    return found


def write_files(folder: Path) -> None:
    """Writes the golden files and the folder into an empty folder."""
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        for name, data in plain_files().items():
            source.write_bytes(data)
            options: dict[str, Any] = {}
            if name.startswith("delta"):
                base = "plain.nz.safetensors"
                options = {"base": str(folder / base), "base_path": base}
            _native.compress_file(str(source), str(folder / name), **options)
        models = Path(place) / "models"
        models.mkdir()
        for name, data in folder_files().items():
            (models / name).write_bytes(data)
        compress_directory(models, folder / FOLDER)


def uses_of_file(file: bytes) -> set[str]:
    """What of the format a compressed file and the streams in it use."""
    kind = files.kind(file)
    if kind == "neuzip-file":
        return {kind}.union(*map(uses, files.frames_of(file)))
    if kind != "neuzip-safetensors":
        return set()
    outer, data = files.read_plain(file)
    streams = [data[t.begin : t.end] for t in outer.tensors if len(t.shape) == 1]
    words = {kind}.union(*map(uses, streams))
    words |= {"a base is named"} if files.base_entry(file) else set()
    bundled = {t.shape[1] for t in outer.tensors if len(t.shape) == 3}
    bundles = {outer.tensors[number].name for number in bundled}
    names = {page.parse(stream).name for stream in streams}
    return (
        words
        | ({"a bundle"} if bundles else set())
        | ({"a repeat of what is in a bundle"} if bundles & names else set())
    )


# --- what is on the disk ----------------------------------------------------------------------


def golden_files() -> list[str]:
    """Every golden file, by its path in `DATA`."""
    paths = (
        path.relative_to(DATA).as_posix() for path in sorted(DATA.rglob("*")) if path.is_file()
    )
    return [path for path in paths if path != HASHES.name]


def originals() -> dict[str, bytes]:
    """What the package makes of every golden file, by its path."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for path in golden_files():
            if path.endswith(".nzt"):
                tensor = nz.CompressedTensor.from_bytes((DATA / path).read_bytes())
                base = base_of(path.removesuffix(".nzt"))
                found[path] = bytes(nz.decompress(tensor, framework="bytes", base=base))
            elif "/" not in path:
                restored = Path(place) / path
                _native.decompress_file(str(DATA / path), str(restored))
                found[path] = restored.read_bytes()
        models = Path(place) / "models"
        decompress_directory(DATA / FOLDER, models)
        for path in sorted(models.rglob("*")):
            found[f"{FOLDER}: {path.name}"] = path.read_bytes()
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write() -> int:
    """Writes the golden files anew; returns how many there are."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    for name, _, stream in streams():
        (DATA / f"{name}.nzt").write_bytes(stream)
    write_files(DATA)
    hashes = {
        "files": {path: digest((DATA / path).read_bytes()) for path in golden_files()},
        "originals": {path: digest(data) for path, data in originals().items()},
    }
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")
    return len(hashes["files"])
