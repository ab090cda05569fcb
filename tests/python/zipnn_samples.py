"""What tests/data/zipnn was made from, and how.

With zipnn 0.5.4 installed, `python -m tests.python.zipnn_samples` from the root of the repository
writes it anew.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.python.golden import elements, noise

DATA = Path(__file__).resolve().parents[1] / "data" / "zipnn"
DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2")
STREAMED = "streamed.znn"
TENSORS = "model.znn.safetensors"
METADATA = {"format": "pt", "note": "äöü"}


def originals() -> dict[str, bytes]:
    """What was compressed as bytes, by the name of the file that zipnn made of it."""
    # Not whole words of four bytes, of which zipnn turns the bits, nor whole chunks.
    found = {f"{dtype}.znn": elements(dtype, 20_000) + b"\1\2" for dtype in DTYPES}
    found[STREAMED] = elements("bfloat16", 9_000) + bytes(5_000) + b"end!"
    return found


def tensors() -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of the tensors of `model.znn.safetensors`."""
    shapes = {"bfloat16": (50, 300), "float16": (15_000,), "float32": (3, 50, 100)}
    found = {dtype: (dtype, shape, elements(dtype, 15_000)) for dtype, shape in shapes.items()}
    return found | {"ids": ("int64", (40,), (noise(40) * 90).astype("<i8").tobytes())}


def write() -> None:
    import torch
    from safetensors.torch import save_file
    from zipnn import ZipNN

    DATA.mkdir(parents=True, exist_ok=True)
    for name, data in originals().items():
        dtype = name.removesuffix(".znn")
        options: dict[str, Any] = {"bytearray_dtype": dtype, "compression_chunk": 1 << 14}
        if name == STREAMED:
            options = {"is_streaming": True, "streaming_chunk": 1 << 14}
        # zipnn changes what it is given.
        (DATA / name).write_bytes(bytes(ZipNN(**options).compress(bytearray(data))))
    stored, listed = {}, {}
    for name, (dtype, shape, data) in tensors().items():
        tensor = torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)
        if tensor.is_floating_point():
            # As zipnn's script for .safetensors files does.
            listed[name] = {"dtype": dtype, "shape": str([*shape])}
            znn = ZipNN(input_format="torch", bytearray_dtype=tensor.dtype, method="HUFFMAN")
            tensor = torch.frombuffer(bytearray(znn.compress(tensor)), dtype=torch.uint8)
        stored[name] = tensor
    save_file(stored, DATA / TENSORS, METADATA | {"znn_compressed_vectors": json.dumps(listed)})


if __name__ == "__main__":
    write()
    sys.stdout.write(f"{sum(1 for _ in DATA.iterdir())} files in {DATA.name}\n")
