"""The emulation itself: collectives, barriers, and that it shows what a GPU would punish."""

import numpy as np
import pytest

from tests.python.cuda.emulation import EMULATION, DeadlockError, Emulated, guarded, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def collectives() -> Emulated:
    return Emulated(EMULATION / "collectives.cu")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_shuffles_shared_memory_and_atomics(collectives: Emulated, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << 32, 1000, np.uint32)
    warps, total = np.zeros(8 * 4, np.uint32), np.zeros(1, np.uint32)
    collectives.launch("sums", 8, 128, values, np.int32(1000), warps, total, seed=seed)
    padded = np.append(values, np.zeros(24, np.uint32))
    assert np.array_equal(warps, padded.reshape(-1, 32).sum(1, np.uint32))
    assert total[0] == values.sum(dtype=np.uint32)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_ballots_and_dynamic_shared_memory(collectives: Emulated, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << 32, 256, np.uint32)
    result = values.copy()
    collectives.launch("partition", 2, 128, result, shared_bytes=512, seed=seed)
    for before, after in zip(values.reshape(-1, 32), result.reshape(-1, 32), strict=True):
        assert after.tolist() == sorted(before.tolist(), key=lambda value: value & 1)


def test_a_missing_barrier_shows(collectives: Emulated) -> None:
    out = np.zeros(64, np.uint32)
    collectives.launch("race", 1, 64, out)
    assert not np.array_equal(out, 63 - np.arange(64))


def test_a_deadlock_is_reported(collectives: Emulated) -> None:
    with pytest.raises(DeadlockError):
        collectives.launch("deadlock", 1, 32, np.zeros(32, np.uint32))


def test_guarded_memory_ends_where_it_says() -> None:
    memory = guarded(b"0123456789abcdef" * 3, 16)
    assert memory.tobytes() == b"0123456789abcdef" * 3
    assert (memory.ctypes.data + memory.size) % 4096 == 0
