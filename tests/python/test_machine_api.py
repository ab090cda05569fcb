"""The Python functions in any order, next to a model that is a dict of bytes.

Compressed tensors, files of tensors with and without a base, saved state, originals read in part:
what comes back is what the dict has. What was damaged is refused or unharmed, and nothing else
changes.
"""

import copy
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import neuzip_rs as nz
from tests.python.command import flipped
from tests.python.samples import KINDS, Sample, assert_same, contents, numpy_array, torch_tensor

DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "int8", "int64", "bool")
SHAPES = ((), (0, 3), (7,), (33, 21), (2, 5, 64), (700,))
LEVELS = st.sampled_from(["fast", "default", "max"])
SEEDS = st.integers(0, 5)


class Functions(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="neuzip-machine-"))
        # Arrays as they were, what they became, and what it needs.
        self.arrays: dict[str, Sample] = {}
        self.compressed: dict[str, nz.CompressedTensor] = {}
        self.base_of: dict[str, str] = {}
        # Files of tensors: the names of the arrays in them, and the file they are differences from.
        self.files: dict[Path, dict[str, str]] = {}
        self.originals: dict[Path, bytes] = {}
        self.states: dict[Path, Sample] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def pick(self, data: st.DataObject, names: Sample) -> Sample:
        return data.draw(st.sampled_from(sorted(names)))

    def has_files(self) -> bool:
        return bool(self.files)

    def has_originals(self) -> bool:
        return bool(self.originals)

    def has_states(self) -> bool:
        return bool(self.states)

    # --- tensors ------------------------------------------------------------------------------

    @initialize()
    def first(self) -> None:
        self.store("a", numpy_array("float32", (33, 21), contents("weights", "float32", 693, 0)))

    def store(self, name: str, array: Sample, **options: Sample) -> None:
        self.arrays[name] = array
        self.compressed[name] = nz.compress(array, **options)
        self.base_of.pop(name, None)

    @rule(
        name=st.sampled_from("abcd"),
        dtype=st.sampled_from(DTYPES),
        shape=st.sampled_from(SHAPES),
        kind=st.sampled_from(KINDS),
        seed=SEEDS,
        level=LEVELS,
        in_torch=st.booleans(),
    )
    def compress(
        self, name: str, dtype: str, shape: Sample, kind: str, seed: int, level: str, in_torch: bool
    ) -> None:
        content = contents(kind, dtype, int(np.prod(shape)), seed)
        array = (torch_tensor if in_torch else numpy_array)(dtype, shape, content)
        self.forget(name)
        self.store(name, array, level=level, threads=1)

    def forget(self, name: str) -> None:
        """What was a difference from an array that goes cannot come back."""
        for other in [n for n, base in self.base_of.items() if base == name]:
            del self.arrays[other], self.compressed[other], self.base_of[other]

    @rule(data=st.data(), name=st.sampled_from("efg"), step=st.integers(0, 40), level=LEVELS)
    def compress_with_base(self, data: st.DataObject, name: str, step: int, level: str) -> None:
        base = self.pick(data, [n for n in self.arrays if n in "abcd"])
        array = copy.deepcopy(self.arrays[base])
        raw = self.raw(array)
        if raw.size:
            raw[:: 1 + step] ^= step & 1
        given = self.compressed[base] if data.draw(st.booleans()) else self.arrays[base]
        self.store(name, array, base=given, level=level)
        if self.compressed[name].base_hash is not None:
            self.base_of[name] = base

    @staticmethod
    def raw(array: Sample) -> Sample:
        """The bytes of an array, which may be written to."""
        if isinstance(array, np.ndarray):
            return array.reshape(-1).view(np.uint8)
        return array.reshape(-1).view(torch.uint8).numpy() if array.numel() else np.empty(0)

    def base(self, name: str) -> Sample:
        return self.arrays[self.base_of[name]] if name in self.base_of else None

    @rule(data=st.data(), threads=st.sampled_from([None, 1, 3]), verify=st.booleans())
    def decompress(self, data: st.DataObject, threads: int | None, verify: bool) -> None:
        name = self.pick(data, self.arrays)
        found = nz.decompress(
            self.compressed[name], base=self.base(name), threads=threads, verify=verify
        )
        assert_same(found, self.arrays[name])

    @rule(data=st.data())
    def decompress_into(self, data: st.DataObject) -> None:
        name = self.pick(data, self.arrays)
        out = copy.deepcopy(self.arrays[name])
        raw = self.raw(out)
        raw[...] = 0
        nz.decompress(self.compressed[name], out=out, base=self.base(name))
        assert_same(out, self.arrays[name])

    @rule(data=st.data())
    def rows(self, data: st.DataObject) -> None:
        name = self.pick(data, [n for n in self.arrays if n not in self.base_of])
        array = self.arrays[name]
        if not array.shape:
            return
        bounds = st.one_of(st.none(), st.integers(-array.shape[0] - 2, array.shape[0] + 2))
        key = slice(data.draw(bounds), data.draw(bounds))
        assert_same(self.compressed[name][key], array[key])

    @rule(data=st.data(), way=st.sampled_from(["pickle", "copy", "bytes"]))
    def pass_on(self, data: st.DataObject, way: str) -> None:
        name = self.pick(data, self.arrays)
        old = self.compressed[name]
        if way == "pickle":
            new = pickle.loads(pickle.dumps(old))
        elif way == "copy":
            new = copy.deepcopy(old)
        else:
            new = nz.CompressedTensor.from_bytes(bytes(old), framework=old.framework)
        assert new == old
        self.compressed[name] = new

    @precondition(lambda self: self.base_of)
    @rule(data=st.data())
    def without_the_base(self, data: st.DataObject) -> None:
        name = self.pick(data, self.base_of)
        with pytest.raises(nz.BaseMismatchError):
            nz.decompress(self.compressed[name])
        other = copy.deepcopy(self.base(name))
        raw = self.raw(other)
        if raw.size:
            raw[-1] ^= 1
            with pytest.raises(nz.BaseMismatchError):
                nz.decompress(self.compressed[name], base=other)

    @rule(data=st.data())
    def damaged_tensor(self, data: st.DataObject) -> None:
        name = self.pick(data, self.arrays)
        stream = bytes(self.compressed[name])
        place = data.draw(st.integers(0, len(stream) - 1))
        if data.draw(st.booleans()):
            damaged = flipped(stream, place, 1 << data.draw(st.integers(0, 7)))
        else:
            damaged = stream[:place]
        with pytest.raises(nz.NeuzipError):
            nz.decompress(damaged, base=self.base(name), max_output_size=1 << 20)

    # --- files --------------------------------------------------------------------------------

    @rule(data=st.data(), name=st.sampled_from(["x", "y"]), level=LEVELS)
    def save_file(self, data: st.DataObject, name: str, level: str) -> None:
        path = self.folder / f"{name}.nz.safetensors"
        names = data.draw(st.sets(st.sampled_from(sorted(self.arrays)), max_size=4))
        tensors = {f"t.{n}": copy.deepcopy(self.arrays[n]) for n in sorted(names)}
        bases = [other for other in self.files if other != path and not self.needs(other, path)]
        base = data.draw(st.sampled_from([None, *sorted(bases)]))
        if any(self.needs(other, path) for other in self.files if other != path):
            return
        nz.safetensors.save_file(tensors, path, level=level, base=base)
        self.files[path] = tensors
        self.originals.pop(path, None)

    def needs(self, path: Path, other: Path) -> bool:
        """Whether a file is a difference from another one."""
        entry = nz.safetensors.open_tensors(path).base
        return entry is not None and other.name in entry

    @precondition(has_files)
    @rule(data=st.data())
    def load_file(self, data: st.DataObject) -> None:
        path = self.pick(data, self.files)
        found = nz.safetensors.load_file(path, framework="pt")
        assert found.keys() == self.files[path].keys()
        for name, array in self.files[path].items():
            assert self.same_bits(found[name], array)

    @staticmethod
    def same_bits(found: Sample, array: Sample) -> bool:
        raw = Functions.raw
        return raw(found).tobytes() == raw(array).tobytes() and tuple(found.shape) == array.shape

    @precondition(has_files)
    @rule(data=st.data())
    def read_in_part(self, data: st.DataObject) -> None:
        path = self.pick(data, self.files)
        with nz.safetensors.safe_open(path, framework="pt") as file:
            for name in self.files[path]:
                array = self.files[path][name]
                assert tuple(file.get_slice(name).get_shape()) == tuple(array.shape)
                if array.shape:
                    start = data.draw(st.integers(0, array.shape[0]))
                    stop = data.draw(st.integers(start, array.shape[0]))
                    part = file.get_slice(name)[start:stop]
                    assert self.same_bits(part, array[start:stop])

    @precondition(has_files)
    @rule(data=st.data(), level=LEVELS)
    def decompress_and_compress(self, data: st.DataObject, level: str) -> None:
        """A file that is restored and compressed again is restored to the same."""
        path = self.pick(data, self.files)
        plain, again = self.folder / "plain.safetensors", self.folder / "again.nz.safetensors"
        nz.safetensors.decompress_file(path, plain, overwrite=True)
        nz.safetensors.verify_file(path)
        original = plain.read_bytes()
        assert self.originals.setdefault(path, original) == original
        nz.safetensors.compress_file(plain, again, level=level, overwrite=True)
        plain.unlink()
        nz.safetensors.decompress_file(again, plain)
        assert plain.read_bytes() == original
        plain.unlink()
        again.unlink()

    @precondition(has_originals)
    @rule(data=st.data())
    def original_in_part(self, data: st.DataObject) -> None:
        path = self.pick(data, self.originals)
        original = self.originals[path]
        with nz.open(path) as file:
            for _ in range(3):
                start = data.draw(st.integers(0, len(original)))
                count = data.draw(st.integers(0, 3000))
                file.seek(start)
                assert file.read(count) == original[start : start + count]

    @precondition(has_files)
    @rule(data=st.data())
    def damaged_file(self, data: st.DataObject) -> None:
        path = self.pick(data, self.files)
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        damaged = self.folder / "damaged.nz.safetensors"
        damaged.write_bytes(flipped(content, place, 1 << data.draw(st.integers(0, 7))))
        restored = self.folder / "restored"
        try:
            nz.safetensors.decompress_file(damaged, restored)
        except nz.NeuzipError:
            assert not restored.exists()
        else:
            found = restored.read_bytes()
            assert self.originals.get(path, found) == found
            nz.safetensors.decompress_file(path, restored, overwrite=True)
            assert restored.read_bytes() == found
        restored.unlink(missing_ok=True)
        damaged.unlink()

    # --- state --------------------------------------------------------------------------------

    @rule(data=st.data(), name=st.sampled_from(["s", "t"]), level=LEVELS)
    def save(self, data: st.DataObject, name: str, level: str) -> None:
        names = data.draw(st.lists(st.sampled_from(sorted(self.arrays)), max_size=3))
        arrays = [copy.deepcopy(self.arrays[n]) for n in names]
        state = {"arrays": arrays, 3: ("x", None, -0.0, b"\0"), "tied": [arrays, {"n": names}]}
        path = self.folder / f"{name}.nz"
        nz.save(state, path, level=level)
        self.states[path] = state

    @precondition(has_states)
    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        path = self.pick(data, self.states)
        found, expected = nz.load(path), self.states[path]
        assert found.keys() == expected.keys()
        assert repr(found[3]) == repr(expected[3])
        assert found["tied"][1] == expected["tied"][1]
        for array, other, tied in zip(
            found["arrays"], expected["arrays"], found["tied"][0], strict=True
        ):
            assert_same(array, other)
            assert_same(tied, other)

    @precondition(has_states)
    @rule(data=st.data())
    def damaged_state(self, data: st.DataObject) -> None:
        path = self.pick(data, self.states)
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content) - 1))
        damaged = self.folder / "damaged.nz"
        damaged.write_bytes(content[:cut])
        with pytest.raises(nz.NeuzipError):
            nz.load(damaged)
        damaged.unlink()

    @invariant()
    def no_other_files(self) -> None:
        assert set(self.folder.iterdir()) == {*self.files, *self.states}


def test_the_functions_in_any_order() -> None:
    examples = max(20, settings().max_examples // 4)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Functions, settings=settings(max_examples=examples, stateful_step_count=30)
    )
