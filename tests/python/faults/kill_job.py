"""Kills processes that write, at random moments, and looks at what they leave.

    python kill_job.py KIND KILLS FOLDER

This process only imports, forks and kills. A child writes one version after the other and says
so after each; it is killed somewhere in one of those after the first. Another child then looks:
what is there has to be the version that was finished last, or the next. Prints how many kills found
the old version, how many the new one, and how many left something half-done beside it, which says
that they hit.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

import neuzip_rs as nz
import neuzip_rs.cli
import neuzip_rs.directory
from neuzip_rs import safetensors

VERSIONS = 2


def tensors(version: int, count: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(version)
    found = {f"t{n}": rng.standard_normal((200, 500)).astype(np.float16) for n in range(count)}
    return {**found, "version": np.array([version])}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return sorted(a) == sorted(b) and all(np.array_equal(a[name], b[name]) for name in a)


class Job:
    """Writes versions of something; `found` says which one is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()

    def prepare(self) -> None:
        for version in range(VERSIONS):
            safetensors.save_file(tensors(version), self.folder / "packed")
            plain = self.folder / f"plain{version}.safetensors"
            safetensors.decompress_file(self.folder / "packed", plain)
            (self.folder / "packed").unlink()

    def plain(self, version: int) -> Path:
        return self.folder / f"plain{version % VERSIONS}.safetensors"

    def write(self, version: int) -> None:
        raise NotImplementedError

    def found(self) -> int:
        raise NotImplementedError

    def clean(self) -> bool:
        """Removes what was left beside, and says if there was anything."""
        left = list(self.folder.glob(".neuzip-*.tmp"))
        for path in left:
            path.unlink()
        return bool(left)

    def version_of(self, data: bytes) -> int:
        for version in range(VERSIONS):
            if self.plain(version).read_bytes() == data:
                return version
        raise AssertionError("neither version")


class CompressFile(Job):
    """A `.safetensors` file is compressed over the one before, and that is restored."""

    def write(self, version: int) -> None:
        safetensors.compress_file(self.plain(version), self.folder / "out", overwrite=True)
        safetensors.decompress_file(self.folder / "out", self.folder / "back", overwrite=True)

    def found(self) -> int:
        safetensors.decompress_file(self.folder / "out", self.folder / "check", overwrite=True)
        # One step behind at most.
        version = self.version_of((self.folder / "check").read_bytes())
        self.version_of((self.folder / "back").read_bytes())
        return version


class NzFile(CompressFile):
    """Any other file."""

    def prepare(self) -> None:
        super().prepare()
        for version in range(VERSIONS):
            # No longer a .safetensors file.
            self.plain(version).write_bytes(b"x" + self.plain(version).read_bytes())


class SaveFile(Job):
    """Tensors in memory, as a checkpoint and as a nested state."""

    def write(self, version: int) -> None:
        content = tensors(version % VERSIONS)
        safetensors.save_file(content, self.folder / "saved")
        nz.save({"step": version % VERSIONS, "tensors": content}, self.folder / "state")

    def found(self) -> int:
        loaded = safetensors.load_file(self.folder / "saved", framework="np")
        version = int(loaded["version"][0])
        assert same(loaded, tensors(version))
        state = nz.load(self.folder / "state")
        assert same(state["tensors"], tensors(state["step"]))
        return version


class Remove(Job):
    """`neuzip compress --rm`: the original, or what it can be restored from."""

    def write(self, version: int) -> None:
        source = self.folder / "model.safetensors"
        shutil.copy(self.plain(version), self.folder / "copy")
        (self.folder / "copy").replace(source)
        (self.folder / "model.nz.safetensors").unlink(missing_ok=True)
        sys.argv = ["neuzip", "compress", "-q", "--rm", str(source)]
        assert neuzip_rs.cli.main() == 0
        assert not source.exists()

    def found(self) -> int:
        source, packed = self.folder / "model.safetensors", self.folder / "model.nz.safetensors"
        versions = set()
        if packed.exists():
            safetensors.decompress_file(packed, self.folder / "check", overwrite=True)
            versions.add(self.version_of((self.folder / "check").read_bytes()))
        if source.exists():
            versions.add(self.version_of(source.read_bytes()))
        assert versions, "neither the original nor the compressed file"
        return max(versions)


class Directory(Job):
    """A model directory is compressed over the one before, and restored."""

    def prepare(self) -> None:
        super().prepare()
        for version in range(VERSIONS):
            model = self.folder / f"model{version}"
            (model / "nested").mkdir(parents=True)
            shutil.copy(self.plain(version), model / "a.safetensors")
            shutil.copy(self.plain(1 - version), model / "nested" / "b.safetensors")
            (model / "config.json").write_text(f'{{"version": {version}}}')

    def write(self, version: int) -> None:
        model, packed = self.folder / f"model{version % VERSIONS}", self.folder / "model-nz"
        neuzip_rs.directory.compress_directory(model, packed, overwrite=True)
        neuzip_rs.directory.decompress_directory(packed, self.folder / "model", overwrite=True)

    def version_below(self, folder: Path) -> int:
        version = int(json.loads((folder / "config.json").read_text())["version"])
        expected = self.folder / f"model{version}"
        names = sorted(path.relative_to(expected) for path in expected.rglob("*"))
        assert names == sorted(path.relative_to(folder) for path in folder.rglob("*"))
        for name in names:
            if (expected / name).is_file():
                assert (expected / name).read_bytes() == (folder / name).read_bytes()
        return version

    def found(self) -> int:
        packed, check = self.folder / "model-nz", self.folder / "check"
        neuzip_rs.directory.decompress_directory(packed, check, overwrite=True)
        version = self.version_below(check)
        self.version_below(self.folder / "model")
        # The next run goes on and leaves nothing beside.
        for number in range(VERSIONS):
            self.write(number)
            assert self.version_below(self.folder / "model") == number
        assert not list(self.folder.glob("*.partial"))
        return version

    def clean(self) -> bool:
        return bool(list(self.folder.glob("*.partial")))


class FirstDirectory(Directory):
    """The same with nothing there before: all of it, or nothing under that name."""

    def write(self, version: int) -> None:
        for name in ("model-nz", "model"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        super().write(version)

    def found(self) -> int:
        packed = self.folder / "model-nz"
        model = self.folder / "model"
        # The program itself is killed while it removes what a run before has made.
        whole = (packed / "neuzip_manifest.json").exists() or not packed.exists()
        version = 0
        if whole and packed.exists() and not model.exists():
            check = self.folder / "check"
            neuzip_rs.directory.decompress_directory(packed, check, overwrite=True)
            version = self.version_below(check)
        shutil.rmtree(packed, ignore_errors=True)
        shutil.rmtree(model, ignore_errors=True)
        Directory.write(self, version)
        assert self.version_below(model) == version
        assert not list(self.folder.glob("*.partial"))
        return version


class Checkpoint(Job):
    """torch.distributed.checkpoint, over the checkpoint before."""

    def prepare(self) -> None:
        import torch

        torch.set_num_threads(1)
        import torch.distributed.checkpoint

        import neuzip_rs.dcp

        assert neuzip_rs.dcp

    def state(self, version: int) -> dict:
        import torch

        shape = (200, 501)
        found = {f"w{n}": torch.full(shape, float(version + n)).bfloat16() for n in range(8)}
        return {**found, "version": torch.tensor(version)}

    def write(self, version: int) -> None:
        from torch.distributed import checkpoint

        import neuzip_rs.dcp

        writer = neuzip_rs.dcp.writer(self.folder / "checkpoint")
        checkpoint.save(self.state(version % VERSIONS), storage_writer=writer, no_dist=True)

    def found(self) -> int:
        import torch
        from torch.distributed import checkpoint

        import neuzip_rs.dcp

        state = {name: torch.zeros_like(value) for name, value in self.state(0).items()}
        reader = neuzip_rs.dcp.reader(self.folder / "checkpoint")
        checkpoint.load(state, storage_reader=reader, no_dist=True)
        version = int(state["version"])
        for name, value in self.state(version).items():
            assert torch.equal(state[name], value), name
        return version


JOBS: dict[str, type[Job]] = {
    "compress file": CompressFile,
    "nz file": NzFile,
    "save file": SaveFile,
    "remove": Remove,
    "directory": Directory,
    "first directory": FirstDirectory,
    "checkpoint": Checkpoint,
}


def in_child(act: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os._exit(act())
        finally:
            traceback.print_exc()
            os._exit(100)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_for_ever(job: Job, pipe: int) -> int:
    # Whatever libraries say is not the summary.
    os.dup2(2, 1)
    version = 0
    while True:
        job.write(version)
        os.write(pipe, b".")
        version += 1


def kill_one(job: Job, rng: random.Random) -> tuple[str, bool]:
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_for_ever(job, writable)
        finally:
            traceback.print_exc()
            os._exit(100)
    os.close(writable)
    with os.fdopen(readable, "rb", buffering=0) as pipe:
        assert pipe.read(1), "the writer failed"
        began = time.perf_counter()
        assert pipe.read(1), "the writer failed"
        took = time.perf_counter() - began
        time.sleep(rng.random() * 2 * took)
        os.kill(child, signal.SIGKILL)
        done = 2 + len(pipe.read())
    os.waitpid(child, 0)
    left = job.clean()
    found = in_child(job.found)
    assert found in range(VERSIONS), f"{type(job).__name__}: what is there is wrong"
    return "new" if found == done % VERSIONS else "old", left


def main() -> None:
    kind, kills, folder = sys.argv[1:]
    rng = random.Random(kind)
    job = JOBS[kind](Path(folder))
    counts = {"old": 0, "new": 0, "left": 0}
    for _ in range(int(kills)):
        which, left = kill_one(job, rng)
        counts[which] += 1
        counts["left"] += left
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
