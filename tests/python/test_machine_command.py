"""The command in any order on one folder, next to a model of it: nothing is ever lost.

The model knows of every name what it stands for and in which forms it lies there. After each step
the folder has these files and no others, plain files have their bytes, and at the end everything
comes back.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
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

from neuzip_rs.cli import main
from tests.python.command import flipped, weights

PLAIN, COMPRESSED = "plain", "compressed"
COUNT = 600


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """The exit status, the output and the errors of the command, in this process."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["neuzip", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        status = main()
    said = errors.getvalue()
    for bad in ("Traceback", "panicked", "internal error"):
        assert bad not in said, said
    return status, out.getvalue(), said


def tensors_file(step: int) -> bytes:
    """A checkpoint: tensors that are near those of other steps, and one that is the same in all."""
    first = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    moved = np.random.default_rng(step).standard_normal(COUNT).astype(np.float32)
    parts = {
        "near": ("F32", (first + np.float32(1e-5) * moved).astype("<f4").tobytes()),
        "same": ("BF16", weights(COUNT, seed=9)),
        "other": ("F32", moved.astype("<f4").tobytes()),
    }
    header, data = {}, b""
    for name, (dtype, content) in parts.items():
        end = len(data) + len(content)
        header[name] = {"dtype": dtype, "shape": [COUNT], "data_offsets": [len(data), end]}
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


CHECKPOINTS = [tensors_file(step) for step in range(4)]
OTHERS = [b"", b"x", b"neuzip " * 999, weights(5000, dtype="F32"), bytes(70_000)]


class Command(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="neuzip-machine-"))
        self.contents: dict[str, bytes] = {}
        self.forms: dict[str, set[str]] = {}

    def teardown(self) -> None:
        """Everything comes back, from the compressed form where there is one."""
        try:
            for name, forms in self.forms.items():
                if COMPRESSED in forms:
                    out = self.folder / "restored"
                    status, _, said = run("decompress", self.path(name, COMPRESSED), "-o", out)
                    assert status == 0, said
                    assert out.read_bytes() == self.contents[name]
                    out.unlink()
        finally:
            shutil.rmtree(self.folder)

    def path(self, name: str, form: str) -> Path:
        if form == PLAIN:
            return self.folder / name
        if self.contents[name] in CHECKPOINTS:
            return self.folder / name.replace(".safetensors", ".nz.safetensors")
        return self.folder / f"{name}.nz"

    def pick(self, data: st.DataObject, *, checkpoint: bool = False) -> str:
        names = [n for n in self.forms if not checkpoint or self.contents[n] in CHECKPOINTS]
        return data.draw(st.sampled_from(sorted(names)))

    def has_checkpoints(self) -> bool:
        return any(content in CHECKPOINTS for content in self.contents.values())

    @initialize()
    def two_checkpoints(self) -> None:
        for step in (0, 1):
            self.add_checkpoint(step)

    @rule(step=st.integers(0, len(CHECKPOINTS) - 1))
    def add_checkpoint(self, step: int) -> None:
        self.add(f"step-{step}.safetensors", CHECKPOINTS[step])

    @rule(number=st.integers(0, len(OTHERS) - 1))
    def add_other(self, number: int) -> None:
        self.add(f"other-{number}", OTHERS[number])

    def add(self, name: str, content: bytes) -> None:
        if name not in self.forms:
            self.contents[name], self.forms[name] = content, {PLAIN}
            self.path(name, PLAIN).write_bytes(content)

    @rule(data=st.data(), remove=st.booleans(), force=st.booleans(), level=st.booleans())
    def compress(self, data: st.DataObject, remove: bool, force: bool, level: bool) -> None:
        arguments = ["--level", "fast"] if level else []
        self.compress_with(self.pick(data), arguments, remove=remove, force=force)

    @precondition(has_checkpoints)
    @rule(data=st.data(), remove=st.booleans(), force=st.booleans(), form=st.booleans())
    def compress_with_base(
        self, data: st.DataObject, remove: bool, force: bool, form: bool
    ) -> None:
        name, base = self.pick(data, checkpoint=True), self.pick(data, checkpoint=True)
        forms = sorted(self.forms[base])
        path = self.path(base, forms[form % len(forms)])
        self.compress_with(name, ["--base", str(path)], remove=remove, force=force)

    def compress_with(self, name: str, arguments: list[str], *, remove: bool, force: bool) -> None:
        flags = (["--rm"] if remove else []) + (["-f"] if force else [])
        before = self.bytes_of(name, COMPRESSED)
        status, _, said = run("compress", self.path(name, PLAIN), *arguments, *flags)
        forms = self.forms[name]
        if PLAIN not in forms or (COMPRESSED in forms and not force):
            assert status == 1, said
            assert self.bytes_of(name, COMPRESSED) == before
            return
        if status == 1:
            # The only reason to refuse: the original is needed, or would be overwritten.
            assert "--base" in arguments
            assert self.path(name, PLAIN).exists(), said
            if self.path(name, COMPRESSED).exists():
                forms.add(COMPRESSED)
            return
        assert status == 0, said
        forms.add(COMPRESSED)
        if remove:
            forms.discard(PLAIN)

    @rule(data=st.data(), remove=st.booleans(), force=st.booleans())
    def decompress(self, data: st.DataObject, remove: bool, force: bool) -> None:
        name = self.pick(data)
        flags = (["--rm"] if remove else []) + (["-f"] if force else [])
        status, _, said = run("decompress", self.path(name, COMPRESSED), *flags)
        forms = self.forms[name]
        if COMPRESSED not in forms or (PLAIN in forms and not force):
            assert status == 1, said
            return
        assert status == 0, said
        forms.add(PLAIN)
        if remove:
            forms.discard(COMPRESSED)

    @rule(data=st.data())
    def verify(self, data: st.DataObject) -> None:
        name = self.pick(data)
        status, _, said = run("verify", self.path(name, COMPRESSED))
        assert status == (0 if COMPRESSED in self.forms[name] else 1), said

    @rule(data=st.data())
    def info(self, data: st.DataObject) -> None:
        name = self.pick(data)
        for form in self.forms[name]:
            status, out, said = run("info", "--json", self.path(name, form))
            if form == COMPRESSED:
                assert status == 0, said
                found = [json.loads(line) for line in out.splitlines()]
                assert found[0]["original_bytes"] == len(self.contents[name])

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A flipped bit is noticed, and the damaged copy replaces nothing."""
        name = self.pick(data)
        content = self.bytes_of(name, COMPRESSED)
        if content is None:
            return
        place = data.draw(st.integers(0, len(content) - 1))
        copy = self.folder / ("x.nz.safetensors" if content[:1] != b"\x89" else "x.nz")
        copy.write_bytes(flipped(content, place, 1 << data.draw(st.integers(0, 7))))
        out = self.folder / "restored"
        status, _, _ = run("decompress", copy, "-o", out)
        assert out.exists() == (status == 0)
        if status == 0:
            assert out.read_bytes() == self.contents[name]
            out.unlink()
        status, _, _ = run("decompress", "--rm", copy, "-o", out)
        assert copy.exists() != (status == 0)
        out.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)

    @rule(data=st.data(), wrong=st.sampled_from(["--rmm", "--level=most", "--base=nowhere"]))
    def wrong_usage(self, data: st.DataObject, wrong: str) -> None:
        name = self.pick(data)
        status, _, _ = run("compress", self.path(name, PLAIN), "-f", wrong)
        assert status in (1, 2)

    def bytes_of(self, name: str, form: str) -> bytes | None:
        path = self.path(name, form)
        return path.read_bytes() if path.exists() else None

    @invariant()
    def folder_is_as_the_model_says(self) -> None:
        expected = {self.path(name, form) for name, forms in self.forms.items() for form in forms}
        assert set(self.folder.iterdir()) == expected
        for name, forms in self.forms.items():
            assert forms, f"{name} is lost"
            if PLAIN in forms:
                assert self.path(name, PLAIN).read_bytes() == self.contents[name]


def test_the_command_in_any_order() -> None:
    examples = max(15, settings().max_examples // 6)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Command, settings=settings(max_examples=examples, stateful_step_count=25)
    )


def test_a_base_that_is_a_difference_from_the_file_itself() -> None:
    """After `--rm` each file needed the other one, and both were lost."""
    machine = Command()
    machine.two_checkpoints()
    first, second = sorted(machine.forms)
    base = str(machine.path(second, PLAIN))
    machine.compress_with(first, ["--base", base], remove=True, force=False)
    base = str(machine.path(first, COMPRESSED))
    machine.compress_with(second, ["--base", base], remove=True, force=False)
    assert machine.forms[second] == {PLAIN, COMPRESSED}
    machine.folder_is_as_the_model_says()
    machine.teardown()


def test_a_file_that_is_its_own_base() -> None:
    machine = Command()
    machine.two_checkpoints()
    name = min(machine.forms)
    base = str(machine.path(name, PLAIN))
    machine.compress_with(name, ["--base", base], remove=True, force=False)
    assert PLAIN in machine.forms[name]
    machine.folder_is_as_the_model_says()
    machine.teardown()


def test_a_file_replaced_by_a_difference_from_itself() -> None:
    """Found by the machine: with `-f` the base was overwritten by what needs it."""
    machine = Command()
    machine.two_checkpoints()
    name, other = sorted(machine.forms)
    machine.compress_with(name, [], remove=False, force=False)
    before = machine.bytes_of(name, COMPRESSED)
    base = str(machine.path(name, COMPRESSED))
    machine.compress_with(name, ["--base", base], remove=False, force=True)
    assert machine.bytes_of(name, COMPRESSED) == before
    # And in two steps.
    machine.compress_with(other, ["--base", base], remove=True, force=False)
    base = str(machine.path(other, COMPRESSED))
    machine.compress_with(name, ["--base", base], remove=False, force=True)
    assert machine.bytes_of(name, COMPRESSED) == before
    machine.folder_is_as_the_model_says()
    machine.teardown()


def test_folders_that_are_differences_from_each_other(tmp_path: Path) -> None:
    for step, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(CHECKPOINTS[step])
    one, two, packed = (tmp_path / name for name in ("one", "two", "one-nz"))
    assert run("compress", one, "--base", two, "--rm")[0] == 0
    status, _, said = run("compress", two, "--base", packed, "--rm")
    assert (status, two.is_dir()) == (1, True)
    assert "not removed" in said
    assert run("verify", packed, tmp_path / "two-nz")[0] == 0
    assert run("decompress", packed)[0] == 0
    for base in (packed, tmp_path / "two-nz"):
        assert run("compress", "-f", one, "--base", base)[0] == 2
        assert run("verify", packed, tmp_path / "two-nz")[0] == 0
