"""The two JSON files of a model directory that loaders read: its configuration and its index.

`config.json` gains `"quantization_config": {"quant_method": "neuzip"}`, by which transformers knows
that the weights are compressed. An index (`*.safetensors.index.json`) stays as it is: shards and
tensors keep their names, and `total_size` goes on saying how large the tensors are in memory. The
original bytes of both are kept in the manifest too, so that a loader or a person may rewrite them.
"""

import json
from typing import Any, Final

from neuzip_rs.directory.manifest import Kind

CONFIG_NAME: Final = "config.json"
INDEX_SUFFIX: Final = ".safetensors.index.json"
QUANTIZATION_KEY: Final = "quantization_config"
QUANTIZATION: Final = {"quant_method": "neuzip"}
# Larger files of these names are no configuration, and not worth reading into memory.
MAX_BYTES: Final = 64 << 20


def loader_kind(name: str, size: int) -> Kind | None:
    """Which of the two files this is, None for any other.

    Args:
        name: Path relative to the model directory; only files directly in it count.
        size: Size of the file.
    """
    if size > MAX_BYTES or "/" in name:
        return None
    if name == CONFIG_NAME:
        return Kind.CONFIG
    return Kind.INDEX if name.endswith(INDEX_SUFFIX) else None


def mark_config(original: bytes) -> tuple[bytes, str | None]:
    """Says in a configuration that the weights are compressed.

    Args:
        original: The bytes of config.json.

    Returns:
        The bytes to store, and what the user should know if these are the original ones.
    """
    try:
        config: Any = json.loads(original)
    except (ValueError, RecursionError):
        return original, f"{CONFIG_NAME} is no valid JSON, copied as it is"
    if not isinstance(config, dict):
        return original, f"{CONFIG_NAME} is no JSON object, copied as it is"
    # Transformers writes null for "not quantized".
    if config.get(QUANTIZATION_KEY) is not None:
        return original, f"{CONFIG_NAME} has a {QUANTIZATION_KEY} already, copied as it is"
    config[QUANTIZATION_KEY] = dict(QUANTIZATION)
    # ASCII escapes keep even text that is no valid Unicode (lone surrogates) writable.
    return json.dumps(config, indent=2).encode("ascii") + b"\n", None
