"""The example of training runs and shows what it says, here with a model of no size."""

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_a_small_llama(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("train_llama")
    sizes = [
        "--steps",
        "3",
        "--hidden",
        "64",
        "--intermediate",
        "96",
        "--layers",
        "2",
        "--length",
        "32",
        "--batch",
        "1",
    ]
    options = example._arguments().parse_args([*sizes, "--save", str(tmp_path / "model")])
    results = {way: example.train(way, options) for way in example.WAYS}
    vanilla, _, compressed, smallest = results.values()
    for result in results.values():
        assert result["losses"] == vanilla["losses"]
        assert result["digest"] == vanilla["digest"]
    assert compressed["weights and gradients"] < 0.6 * vanilla["weights and gradients"]
    assert smallest["states"] < compressed["states"]
    assert example.table(results).count("\n") == 1 + len(results)
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 0

    pytest.importorskip("matplotlib")
    example.draw(results, tmp_path / "picture.svg")
    assert "bit for bit" in (tmp_path / "picture.svg").read_text(encoding="utf-8")
