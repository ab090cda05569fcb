"""The benchmarks themselves: what they compute from times, and that each part runs."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neuzip_rs
from benches import __main__ as bench
from benches import codecs, command, memory, paired, peers, readme, small, speed, speed_page
from benches import targets as targets_module
from benches.models import Tensor, write_tensors
from benches.paired import COMPRESS, Result, Spread, Timing
from benches.weights import COLUMNS, float32_to_e4m3

ROOT = Path(__file__).resolve().parents[2]


def buffer(rows: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """BF16 weights as bytes."""
    values = np.random.default_rng(1).normal(0, 0.02, rows * COLUMNS).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "buffer.npy"
    np.save(path, buffer())
    return path


def result(**changes: Any) -> Result:
    """Two rounds; the machine is twice as slow in the second one."""
    times = {
        ("neuzip default", COMPRESS): 2.0,
        ("neuzip default", codecs.OUT): 1.0,
        ("memcpy", codecs.OUT): 0.5,
        ("zipnn", codecs.FRESH): 7.0,
    }
    rounds = [
        {key: Timing(wall=slow * seconds, cpu=3 * slow * seconds) for key, seconds in times.items()}
        for slow in (1, 2)
    ]
    del rounds[1]["zipnn", codecs.FRESH]
    facts: dict[str, Any] = {
        "kind": "BF16",
        "dtype": "bfloat16",
        "regime": "warm",
        "tier": "scalar",
        "threads": 1,
        "original_bytes": 6_000_000_000,
        "sizes": {"neuzip default": 3_000_000_000, "memcpy": 6_000_000_000, "zipnn": 1},
        "missing": {"lz4": "not installed"},
        "rounds": rounds,
        "others": 0.4,
    }
    return Result(**{**facts, **changes})


def test_ratios_are_taken_within_a_round() -> None:
    found = result()
    ratio = found.ratio(("neuzip default", codecs.OUT), ("memcpy", codecs.OUT))
    assert ratio == Spread(0.5, 0.5, 0.5, 2)
    # zipnn had one turn only.
    ratio = found.ratio(("neuzip default", codecs.OUT), ("zipnn", codecs.FRESH))
    assert ratio == Spread(7.0, 7.0, 7.0, 1)
    assert found.ratio(("neuzip default", codecs.OUT), ("lz4", codecs.FRESH)) is None
    speed_of = found.speed("neuzip default", codecs.OUT)
    assert speed_of is not None
    assert speed_of.median == pytest.approx(1.5)  # of 2 and 1: CPU time
    several = result(threads=2).speed("neuzip default", codecs.OUT)
    assert several is not None
    assert several.median == pytest.approx(4.5)  # of 6 and 3: wall time


def test_spread() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)
    assert spread.with_quartiles() == "3.00 (2.00 to 4.00)"
    assert [paired.digits(x) for x in (0.123, 9.876, 12.34, 123.4)] == [
        *("0.12", "9.88", "12.3", "123")
    ]


def test_results_survive_json() -> None:
    found = result()
    again = Result.from_json(found.to_json())
    assert again == found


def test_targets() -> None:
    verdicts = {(v.what, v.target): v for v in targets_module.speeds([result()], "scalar")}
    verdict = verdicts["BF16, `default`: decode into `out=`", ">= 1x memcpy"]
    assert (verdict.measured, verdict.met) == ("0.50 (0.50 to 0.50)", False)
    verdict = verdicts["BF16, `default`: decode into `out=`, warm heap", ">= 6x zipnn"]
    assert verdict.met
    verdict = verdicts["BF16, `default`, AVX2 kernels: decode", ">= 2.5x zipnn"]
    assert verdict.met is None
    rows = [
        {
            "codec": "neuzip default",
            "threads": 1,
            "original_bytes": 20_000_000,
            "compressed_bytes": 10_000_000,
            "peaks": {COMPRESS: 15_000_000, codecs.FRESH: 21_000_000, codecs.OUT: 4 << 20},
        }
    ]
    assert [verdict.met for verdict in targets_module.memory(rows)] == [False, True, True]


def test_page() -> None:
    found = speed_page.Measurements(
        date="2026-01-01",
        quick=True,
        machine={"CPU": "abacus"},
        versions={"zipnn": "1"},
        tiers={"scalar": "best", "avx2": "not available"},
        best="scalar",
        results=[result()],
        command=None,
        small=None,
        memory=[],
    )
    page = speed_page.page(found)
    assert "quick run" in page
    assert "not quiet: other programs used up to 0.40 cores" in page
    assert "avx2: not available" in page
    assert "| lz4 | not installed |" in page
    assert "| neuzip default | 50.00 | 0.75 |" in page
    assert "**neuzip default**" in speed_page.readme_table(found)
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert not bench.record(found)["small"]


class Broken(codecs.Codec):
    """It loses the last byte."""

    name = "broken"

    def compress(self, sample: codecs.Sample) -> bytes:
        return sample.data.tobytes()

    def decoders(self) -> dict[str, Any]:
        return {codecs.FRESH: lambda packed, _: packed[:-1] + b"?"}


class Scratching(codecs.Codec):
    """It overwrites its input, and every turn is noted."""

    name = "scratching"
    scratches_input = True
    every = 2

    def __init__(self, turns: list[str]) -> None:
        self.turns = turns

    def compress(self, sample: codecs.Sample) -> bytes:
        packed = sample.data.tobytes()
        assert packed == sample.pristine.tobytes()
        self.turns.append(self.name)
        sample.data.fill(0)
        return packed

    def decoders(self) -> dict[str, Any]:
        return {codecs.FRESH: lambda packed, _: packed}


def test_codecs_are_proved() -> None:
    sample = codecs.Sample("bfloat16", buffer(), (64, COLUMNS))
    for codec in (codecs.Neuzip("fast", 1), codecs.Copy(1), codecs.Copy(3)):
        assert 0 < codec.prove(sample) <= sample.data.size
    with pytest.raises(AssertionError, match="broken: fresh did not restore"):
        Broken().prove(sample)
    sizes, failed = peers.proved([Broken(), Scratching([])], sample)
    assert [codec.name for codec in sizes] == ["scratching"]
    assert failed == {"broken": "failed: broken: fresh did not restore its input"}


def test_rounds_restore_the_input_and_rotate() -> None:
    turns: list[str] = []
    sample = codecs.Sample("bfloat16", buffer(1), (1, COLUMNS))
    rounds = paired.run_rounds(
        [Scratching(turns), codecs.Copy(1)], sample, rounds=5, enough=2, seconds=60
    )
    assert len(rounds) == 5
    assert [("scratching", COMPRESS) in entries for entries in rounds] == [1, 0, 1, 0, 1]
    assert all(("memcpy", codecs.OUT) in entries for entries in rounds)
    assert np.array_equal(sample.data, sample.pristine)
    rounds = paired.run_rounds([codecs.Copy(1)], sample, rounds=5, enough=2, seconds=0)
    assert len(rounds) == 2


@pytest.mark.filterwarnings("ignore")  # those of what the peers import
def test_peers_that_are_missing_are_named() -> None:
    found, missing = peers.available("bfloat16", 1)
    names = {codec.name for codec in found} | set(missing)
    assert {"zipnn", "zstd -1", "lz4", "openzl", "lmzip", "blosc2 shuffle+zstd"} == names - {
        "zstd -3",
        "blosc2 bitshuffle+lz4",
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_a_case_in_its_own_process(file: Path, threads: int) -> None:
    best = speed.best_tier()
    case = speed.Case("BF16", "warm", best, threads, peers=False)
    found = speed.measure(case, file, speed.Effort(2, 1, 0.0))
    assert found.original_bytes == buffer().size
    assert len(found.rounds) == 1
    assert found.sizes["neuzip fast"] < found.original_bytes
    assert found.ratio(("neuzip default", codecs.OUT), targets_module.MEMCPY) is not None


def test_tiers() -> None:
    assert speed.best_tier() == neuzip_rs.simd_tier()
    assert speed.tier_problem("scalar") is None
    problem = speed.tier_problem("abacus")
    assert problem is not None
    assert "abacus" in problem
    cases = list(speed.cases(["BF16"], ["scalar", "avx2"], "avx2", 2))
    assert [case.tier for case in cases] == ["avx2"] * 4 + ["scalar"]
    assert [case.threads for case in cases] == [1, 1, 2, 2, 1]


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, None, [Tensor("w", "BF16", (64, COLUMNS), buffer())])
    found = command.measure(path, tmp_path, "here", rounds=1)
    assert found.sizes["neuzip default"] < found.original_bytes
    assert found.speed("neuzip fast", "decompress").median > 0
    assert found.peak_bytes["neuzip default"]["compress"] > 1 << 20
    assert list(tmp_path.iterdir()) == [path]


def test_small_tensors(file: Path, tmp_path: Path) -> None:
    found = small.measure(file, tmp_path, rounds=1, count=4)
    assert found["count"] == 4
    assert found["tiny_us"]["numpy"].median > 0
    assert len(found["many"]) == 4
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory in /proc")
def test_memory(tmp_path: Path) -> None:
    path = tmp_path / "buffer.npy"
    np.save(path, buffer(1 << 12))
    task = {
        "codec": "neuzip default",
        "threads": 1,
        "kind": "BF16",
        "file": str(path),
        "limit": None,
        "packed": str(tmp_path / "packed"),
    }
    for action in (COMPRESS, codecs.FRESH):
        found = memory.child.run("benches.memory", {**task, "action": action})
        output = found["compressed_bytes" if action == COMPRESS else "original_bytes"]
        assert 0.9 * output < found["peaks"][action] < output + (64 << 20)


def test_fp8_fills_its_range() -> None:
    values = np.array([[0.0, 1.0, -2.0, 0.5], [0.0, 0.0, 0.0, 0.0]], np.float32)
    bits = float32_to_e4m3(values)
    assert bits.tolist() == [[0x00, 0x76, 0xFE, 0x6E], [0, 0, 0, 0]]


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    options = bench.parse_arguments(["--quick", "--tiers", "scalar,avx2"])
    assert options.tiers == ["scalar", "avx2"]
    assert options.out == bench.QUICK_RESULTS
    assert bench.parse_arguments([]).out == bench.RESULTS
    with pytest.raises(SystemExit):
        bench.parse_arguments(["--tiers", "abacus"])
    assert "unknown tiers" in capsys.readouterr().err


def test_readme_has_the_block() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.block(bench.README_BLOCK).search(text)
