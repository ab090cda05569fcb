"""Reading the weights of a compressed model directory without building a model."""

import json
import os
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from neuzip_rs._arrays import Array, Device
from neuzip_rs.safetensors import load_file


def load_state_dict(
    path: str | os.PathLike[str],
    *,
    device: Device = "cpu",
    variant: str | None = None,
    threads: int | None = None,
    verify: bool = True,
) -> dict[str, Array]:
    """Reads all tensors of a model, compressed or plain.

    It needs no hook of transformers:

        config = AutoConfig.from_pretrained("model-nz")
        weights = neuzip_rs.hf.load_state_dict("model-nz")
        model = LlamaForCausalLM.from_pretrained(None, config=config, state_dict=weights)

    Args:
        path: A model directory, its index (`*.safetensors.index.json`), or one file.
        device: Where to put the tensors.
        variant: Which weights of a directory, as in `from_pretrained`.
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
        verify: Check the hash of everything decoded.

    Returns:
        The tensors by the names they have in the files.

    Raises:
        FileNotFoundError: If there are no weights.
        CorruptDataError: If a file is damaged.
        BaseMismatchError: If a file needs a base that is missing or another one.
    """
    tensors: dict[str, Array] = {}
    for file in _files(Path(os.fsdecode(path)), variant):
        tensors.update(load_file(file, device, framework="pt", threads=threads, verify=verify))
    return tensors


def _files(path: Path, variant: str | None) -> list[Path]:
    if path.is_dir():
        whole = path / _with_variant(SAFE_WEIGHTS_NAME, variant)
        index = path / _with_variant(SAFE_WEIGHTS_INDEX_NAME, variant)
        if whole.is_file():
            return [whole]
        if not index.is_file():
            message = f"{path}: neither {whole.name} nor {index.name} in it"
            raise FileNotFoundError(message)
        path = index
    if path.suffix != ".json":
        return [path]
    names = json.loads(path.read_text("utf-8"))["weight_map"].values()
    return [path.parent / name for name in sorted(set(names))]


def _with_variant(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors`, as transformers names the files of a variant."""
    if variant is None:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"
