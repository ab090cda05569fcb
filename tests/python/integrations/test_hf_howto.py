"""docs/howto/transformers.md, followed as it is written."""

import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

from neuzip_rs import _native
from tests.python import command
from tests.python.integrations.hf_models import make
from tests.python.integrations.howto import follow


def test_page(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path / "model")
    paths = os.pathsep.join(path for path in sys.path if path)
    # A GPU would take the Trainer's model away from the codec of the CPU.
    environment = command.environment(PYTHONPATH=paths, CUDA_VISIBLE_DEVICES="")
    assert follow("transformers.md", tmp_path, environment) == 8
    for folder in ("model-nz", "copy-nz", "second-nz", "trained-nz"):
        file = tmp_path / folder / "model.safetensors"
        assert _native.content_kind(str(file)) == "neuzip-safetensors", folder
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "neuzip"
