"""Writing a model with compressed weights."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_NAME

from neuzip_rs import _native
from neuzip_rs._arguments import check_level, check_threads
from neuzip_rs.directory.config import CONFIG_NAME, mark_config
from neuzip_rs.directory.manifest import MANIFEST_NAME
from neuzip_rs.directory.transfer import write_file
from neuzip_rs.directory.tree import keep_attributes
from neuzip_rs.hf.types import Model


def save_pretrained(
    model: Model,
    save_directory: str | os.PathLike[str],
    *,
    level: str | None = None,
    threads: int | None = None,
    push_to_hub: bool = False,
    **kwargs: Any,
) -> None:
    """Saves a model as `model.save_pretrained` does, with compressed weights.

    Names of shards and tensors, index and configuration are those of transformers; the
    configuration says that the weights are compressed, so that `from_pretrained` can load them
    wherever `neuzip_rs.hf` was imported. Adapters (PEFT) are saved as they are.

    Args:
        model: Model model of transformers, loaded from a compressed directory or not.
        save_directory: Where to write.
        level: "fast", "default" or "max"; by default what the model's configuration says.
        threads: How many threads may work, by default what the configuration says or every core.
        push_to_hub: Upload the directory afterwards; `repo_id`, `commit_message`, `private`,
            `revision` and `create_pr` may be given as in transformers.
        **kwargs: What `model.save_pretrained` takes: `max_shard_size`, `variant`, `token`, ...
    """
    settings = getattr(model.config, "quantization_config", None)
    level = str(level or getattr(settings, "level", "default"))
    threads = threads or getattr(settings, "threads", None)
    check_level(level)
    check_threads(threads)
    folder = Path(os.fsdecode(save_directory))
    hub = {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if push_to_hub and name in kwargs}
    type(model).save_pretrained(model, folder, **kwargs)
    if not kwargs.get("is_main_process", True) or not folder.is_dir():
        return
    for file in _weights(folder, kwargs.get("variant")):
        if _native.content_kind(str(file)) == "safetensors":
            _compress_in_place(file, level, threads)
    _mark(folder / CONFIG_NAME)
    # It would tell of files that were there before.
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if push_to_hub:
        from neuzip_rs.hub import upload

        repo_id = hub.pop("repo_id", folder.name)
        upload(folder, repo_id, token=kwargs.get("token"), **hub)


_HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "revision", "create_pr")


def _weights(folder: Path, variant: str | None) -> Iterator[Path]:
    """The files that transformers has just written weights to."""
    stem = SAFE_WEIGHTS_NAME.removesuffix(".safetensors")
    stem = stem if variant is None else f"{stem}.{variant}"
    name = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors")
    for file in sorted(folder.iterdir()):
        if name.fullmatch(file.name):
            yield file


def _compress_in_place(file: Path, level: str, threads: int | None) -> None:
    partial = file.with_name(file.name + ".partial")
    try:
        _native.compress_file(str(file), str(partial), level=level, threads=threads, overwrite=True)
        keep_attributes(file, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _mark(config: Path) -> None:
    if not config.is_file():
        return
    original = config.read_bytes()
    if json.loads(original).get("quantization_config") is None:
        write_file(config, mark_config(original)[0])
