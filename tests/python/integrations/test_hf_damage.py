"""Loads that fail: they raise, soon, and give no model."""

import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

tf = pytest.importorskip("transformers", reason="transformers is not installed")
torch = pytest.importorskip("torch")

import neuzip_rs as nz  # noqa: E402
import neuzip_rs.hf  # noqa: E402
from neuzip_rs.hf import NeuzipConfig, loading  # noqa: E402
from neuzip_rs.safetensors import safe_open  # noqa: E402
from tests.python.integrations.hf_models import Model, differences, make_folders  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
SECONDS = 60


def outcome(call: Callable[[], object]) -> object:
    """What a call returns or raises; a call that does not end fails the test and not the run."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found, f"still loading after {SECONDS} s"
    return found[0]


def load_all(folder: Path, *, kept: bool) -> Model:
    """A model with every weight decoded: kept ones are checked when they are used."""
    if not kept:
        return tf.AutoModel.from_pretrained(folder)
    settings = NeuzipConfig(keep_compressed=True, min_numel=256)
    return tf.AutoModel.from_pretrained(folder, quantization_config=settings).dequantize()


def flipped(good: bytes, begin: int, end: int, rng: random.Random) -> bytes:
    place = rng.randrange(begin, end)
    return good[:place] + bytes([good[place] ^ 1 << rng.randrange(8)]) + good[place + 1 :]


def damages(good: bytes, rng: random.Random) -> dict[str, bytes]:
    header = int.from_bytes(good[:8], "little") + 8
    hole = rng.randrange(header, len(good) - 64)
    return {
        "a bit of a payload": flipped(good, header, len(good), rng),
        "a bit of the header": flipped(good, 8, header, rng),
        "a bit of its length": flipped(good, 0, 8, rng),
        "zeros": good[:hole] + bytes(64) + good[hole + 64 :],
        "cut off": good[: rng.randrange(len(good))],
        "longer": good + bytes(16),
    }


@pytest.mark.parametrize("kept", [False, True], ids=["decoded", "kept"])
@pytest.mark.parametrize("name", ["llama", "mixtral", "bert"])
def test_every_damage_is_an_error(tmp_path: Path, name: str, kept: bool) -> None:
    _, compressed = make_folders(tmp_path, name, torch.bfloat16, max_shard_size="60KB")
    shards = sorted(compressed.glob("*.safetensors"))
    assert len(shards) > 1
    rng = random.Random(7)
    for _ in range(2):
        shard = rng.choice(shards)
        good = shard.read_bytes()
        for what, bad in damages(good, rng).items():
            # Replaced, not written to: transformers maps files and may still be at it.
            shard.unlink()
            shard.write_bytes(bad)
            found = outcome(lambda: load_all(compressed, kept=kept))
            assert isinstance(found, nz.CorruptDataError), what
        shard.unlink()
        shard.write_bytes(good)
    assert isinstance(load_all(compressed, kept=kept), tf.PreTrainedModel)


def test_damage_of_tensors_that_no_converter_is_asked_about(tmp_path: Path) -> None:
    plain, compressed = make_folders(tmp_path, "llama", max_shard_size="60KB")
    # Renamed to what the model has not, so that transformers takes the names back.
    options = {"key_mapping": {r"^(model|lm_head)\.": r"other.\1."}}
    expected = tf.AutoModelForCausalLM.from_pretrained(plain, **options)
    loaded = tf.AutoModelForCausalLM.from_pretrained(compressed, **options)
    assert differences(loaded, expected) == []
    shard = min(compressed.glob("*.safetensors"))
    good = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(good[:-40] + bytes([good[-40] ^ 1]) + good[-39:])
    found = outcome(lambda: tf.AutoModelForCausalLM.from_pretrained(compressed, **options))
    assert isinstance(found, nz.CorruptDataError)


def test_index_that_names_other_files(tmp_path: Path) -> None:
    _, compressed = make_folders(tmp_path, "llama", max_shard_size="60KB")
    index = compressed / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    shards = sorted(set(good["weight_map"].values()))
    swapped = dict(zip(shards, reversed(shards), strict=True))
    index.write_text(
        json.dumps(good | {"weight_map": {k: swapped[v] for k, v in good["weight_map"].items()}})
    )
    # Names count, not where the index says that they are.
    plain = tf.AutoModel.from_pretrained(tmp_path / "model")
    assert differences(tf.AutoModel.from_pretrained(compressed), plain) == []
    missing = dict.fromkeys(good["weight_map"], "model-9.safetensors")
    index.write_text(json.dumps(good | {"weight_map": missing}))
    assert isinstance(outcome(lambda: tf.AutoModel.from_pretrained(compressed)), OSError)
    index.write_text(index.read_text()[:-20])
    assert isinstance(outcome(lambda: tf.AutoModel.from_pretrained(compressed)), ValueError)


@pytest.mark.parametrize("error", [MemoryError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["nbytes", "get_tensors"])
def test_errors_in_the_background_reach_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: type[BaseException]
) -> None:
    _, compressed = make_folders(tmp_path, "llama")
    calls: list[object] = []
    real = getattr(safe_open, place)

    def fails_later(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > (3 if place == "nbytes" else 0):
            raise error
        return real(*arguments)

    monkeypatch.setattr(safe_open, place, fails_later)
    found = outcome(lambda: tf.AutoModel.from_pretrained(compressed))
    assert isinstance(found, error)
    assert calls


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals for threads here")
def test_interrupted_load_ends_in_the_background_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, compressed = make_folders(tmp_path, "llama")
    decoded: list[str] = []
    real = safe_open.get_tensors
    main = threading.main_thread().ident
    assert main is not None

    def interrupts(file: safe_open, names: Iterable[str]) -> dict[str, object]:
        decoded.extend(names := list(names))
        time.sleep(0.2)
        if len(decoded) == 1:
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.2)
        return real(file, names)

    monkeypatch.setattr(safe_open, "get_tensors", interrupts)
    # One at a time.
    monkeypatch.setattr(loading, "_BYTES_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt) as kept_alive:
        tf.AutoModel.from_pretrained(compressed)
    time.sleep(1)
    assert len(decoded) <= 2
    del kept_alive
