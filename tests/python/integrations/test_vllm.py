"""The plug-in for vLLM: its loader against vLLM's own, as far as that runs without a GPU."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")
loaders = pytest.importorskip("vllm.model_executor.model_loader", reason="vLLM is not installed")

from importlib.metadata import entry_points  # noqa: E402

from vllm.config.load import LoadConfig  # noqa: E402
from vllm.model_executor.layers.quantization import get_quantization_config  # noqa: E402

import neuzip_rs.vllm  # noqa: E402
from tests.python.integrations.hf_models import make_folders, same_bits  # noqa: E402


@pytest.mark.parametrize("size", ["10GB", "60KB"], ids=["one file", "shards"])
def test_weights_are_those_of_the_plain_checkpoint(tmp_path: Path, size: str) -> None:
    plain, compressed = make_folders(tmp_path, "mixtral", torch.bfloat16, max_shard_size=size)
    neuzip_rs.vllm.register()
    neuzip_rs.vllm.register()
    weights = []
    for folder, load_format in ((plain, "safetensors"), (compressed, "neuzip")):
        loader = loaders.get_model_loader(LoadConfig(load_format=load_format))
        source = type(loader).Source(str(folder), None, prefix="model.")
        weights.append(dict(loader._get_weights_iterator(source)))
    theirs, ours = weights
    assert ours.keys() == theirs.keys()
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)


def test_checkpoints_are_not_quantized() -> None:
    neuzip_rs.vllm.register()
    settings = get_quantization_config("neuzip").from_config({"quant_method": "neuzip"})
    assert settings.get_name() == "neuzip"
    assert settings.get_quant_method(torch.nn.Embedding(2, 2), "") is None


def test_entry_point() -> None:
    found = [
        point for point in entry_points(group="vllm.general_plugins") if point.name == "neuzip"
    ]
    if not found:
        pytest.skip("neuzip_rs runs from its source tree, without entry points")
    assert found[0].load() is neuzip_rs.vllm.register
