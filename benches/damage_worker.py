"""Runs the trials of one subject: forks children that do them, and watches over these.

A child notes the outcome of each trial in shared memory before it goes on, so that after a crash or
a hang the next child goes on behind it. This process only imports: pools of threads do not survive
a fork, so that packing is a child's work too. A trial hangs when it has taken `HANG_SECONDS` of
processor time, or much longer on the clock: the machine may be busy. Memory is counted by the
preloaded allocations.c and limited, so that nothing takes the machine down.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import pickle
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches.damage_subjects import Ours, Subject, makers, weights
from benches.damage_trials import KINDS, OURS_ONLY, Form, Forms

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_BYTES = 8 << 10
LARGE_BYTES = 384 << 10
HANG_SECONDS = 3.0
HANG_CLOCK_SECONDS = 130.0
# So many of a kind are enough to know.
MOST_HANGS = 10
# Beyond what the process has when it starts.
ADDRESS_BYTES = 4 << 30
FREE_BYTES = 1 << 20
# Outcomes of trials.
NOT_RUN, SKIPPED, DETECTED, SAME, SILENT, CRASH, HANG = range(7)
SEEN_NAMES = ("detected", "same", "silent", "crash", "hang")
# Subjects of which less is enough: each crash takes a new process, and packing anew.
SHARES = {"zipnn": 0.02}
BOMB_BYTES = 256 << 20
BOMB_LIMIT = 1 << 20


@dataclass
class Tally:
    """What came of the trials of one kind."""

    trials: int = 0
    detected: int = 0
    same: int = 0
    silent: int = 0
    crash: int = 0
    hang: int = 0
    # Trials that took more than 1 MiB and twice the input, and more than the intact input takes.
    unearned: int = 0
    peak_bytes: int = 0
    intact_peak_bytes: int = 0
    # Numbers of trials that show something bad, to run them again.
    examples: dict[str, list[int]] = field(default_factory=dict)


class Counter:
    """The counts of allocations.c, if it is preloaded."""

    def __init__(self) -> None:
        """Looks for it."""
        program = ctypes.CDLL(None)
        try:
            self.reset: Callable[[], None] = program.allocations_reset
            program.allocations_peak.restype = ctypes.c_long
            self.peak: Callable[[], int] = program.allocations_peak
        except AttributeError:
            self.reset, self.peak = lambda: None, lambda: 0


class Shared:
    """Outcomes and peaks of trials, and how many are done, in memory that children share."""

    def __init__(self, trials: int) -> None:
        """Room for so many."""
        self.trials = trials
        self.memory = mmap.mmap(-1, 8 + 9 * trials + 8)

    @property
    def current(self) -> int:
        """The trial that is being done."""
        return int(struct.unpack_from("<q", self.memory, 0)[0])

    @current.setter
    def current(self, number: int) -> None:
        struct.pack_into("<q", self.memory, 0, number)

    def outcome(self, number: int) -> int:
        """What came of a trial."""
        return self.memory[8 + number]

    def peak(self, number: int) -> int:
        """Its peak."""
        return int(struct.unpack_from("<q", self.memory, 8 + self.trials + 8 * number)[0])

    def note(self, number: int, outcome: int, peak: int = 0) -> None:
        """Says what came of a trial."""
        struct.pack_into("<q", self.memory, 8 + self.trials + 8 * number, peak)
        self.memory[8 + number] = outcome


def forms_of(subject: Subject) -> Forms:
    """Packs what is damaged, and makes sure that it can be restored."""

    def form(size: int, seed: int, *, noise: bool = False) -> Form:
        data = weights(size, seed, 0.0005)
        if noise:
            import numpy as np

            data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
        members = subject.pack(data)
        original = subject.restore(members, size)
        if not isinstance(subject, Ours) and original != data.tobytes():
            message = f"{subject.name} did not restore its input"
            raise AssertionError(message)
        return Form(members, original, size)

    return Forms(
        form(SMALL_BYTES, 2),
        form(LARGE_BYTES, 3),
        form(LARGE_BYTES, 4),
        form(LARGE_BYTES, 5, noise=True),
    )


def intact_peaks(subject: Subject, forms: Forms) -> dict[str, int]:
    """What restoring each form takes when it is whole."""
    counter = Counter()
    peaks = {}
    for name in ("small", "large", "noise"):
        form: Form = getattr(forms, name)
        subject.restore(form.members, form.size)
        gc.collect()
        counter.reset()
        subject.restore(form.members, form.size)
        peaks[name] = counter.peak()
    return peaks


def in_child(act: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Returns what a function returns in a child process."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writable, "wb") as pipe:
                pickle.dump(act(), pipe)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        received = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        message = "a child process failed, and has printed why"
        raise RuntimeError(message)
    return pickle.loads(received)


class Run:
    """The trials of one kind on one subject."""

    def __init__(
        self, subject: Subject, forms: Forms, intact: dict[str, int], kind: str, share: float
    ) -> None:
        """Takes a share of the trials, spread over all."""
        self.subject = subject
        self.forms = forms
        self.kind = kind
        self.damage, count = KINDS[kind]
        everything = count(forms)
        step = max(round(1 / share), 1)
        self.numbers = list(range(0, everything, step))
        self.shared = Shared(len(self.numbers))
        self.counter = Counter()
        self.intact = {id(getattr(forms, name)): peak for name, peak in intact.items()}

    def trial(self, index: int) -> None:
        """Does one trial in this process."""
        made = self.damage(self.forms, self.numbers[index])
        if made is None:
            self.shared.note(index, SKIPPED)
            return
        form, members = made
        self.counter.reset()
        try:
            restored = self.subject.restore(members, form.size)
        except self.subject.raises:
            outcome = DETECTED
        except BaseException:  # a panic, or an exception that is not ours to raise
            traceback.print_exc()
            outcome = CRASH
        else:
            outcome = SAME if restored == form.original else SILENT
        peak = self.counter.peak()
        self.shared.note(index, outcome, peak)

    def work(self, first: int) -> None:
        """Does all trials from one on, as a child."""
        null = os.open(os.devnull, os.O_WRONLY)
        if "NEUZIP_DAMAGE_STDERR" not in os.environ:
            os.dup2(null, 2)
        os.dup2(null, 1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        # What stays from the first use of anything is no trial's.
        intact_peaks(self.subject, self.forms)
        for index in range(first, len(self.numbers)):
            self.shared.current = index
            self.trial(index)
        os._exit(0)

    def run(self) -> Tally:
        """Does all trials."""
        first, hangs = 0, 0
        while first < len(self.numbers) and hangs < MOST_HANGS:
            self.shared.current = first
            child = os.fork()
            if child == 0:
                try:
                    self.work(first)
                finally:
                    os._exit(1)
            ended = _watch(child, self.shared)
            if ended == 0:
                break
            at = self.shared.current
            if self.shared.outcome(at) == NOT_RUN:
                hangs += ended == -signal.SIGKILL
                self.shared.note(at, HANG if ended == -signal.SIGKILL else CRASH)
            first = at + 1
        return self.tally()

    def tally(self) -> Tally:
        """Counts the outcomes."""
        tally = Tally(intact_peak_bytes=max(self.intact.values()))
        for index, number in enumerate(self.numbers):
            outcome = self.shared.outcome(index)
            if outcome < DETECTED:
                continue
            tally.trials += 1
            name = SEEN_NAMES[outcome - DETECTED]
            setattr(tally, name, getattr(tally, name) + 1)
            peak = self.shared.peak(index)
            made = self.damage(self.forms, number)
            if made is not None:
                form, members = made
                free = FREE_BYTES + 2 * sum(map(len, members.values()))
                if peak > max(free, self.intact[id(form)]):
                    tally.unearned += 1
                    tally.examples.setdefault("unearned", []).append(number)
            tally.peak_bytes = max(tally.peak_bytes, peak)
            if outcome > SAME:
                tally.examples.setdefault(name, []).append(number)
        tally.examples = {name: numbers[:5] for name, numbers in tally.examples.items()}
        return tally


def _watch(child: int, shared: Shared) -> int:
    """Waits for a child, or kills it when it hangs; its exit status, negative for a signal."""
    descriptor = os.pidfd_open(child)
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        seen, since_cpu, since_clock = -1, 0.0, 0.0
        while not select.select([descriptor], [], [], 0.5)[0]:
            fields = (
                Path(f"/proc/{child}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            )
            used = (int(fields[11]) + int(fields[12])) / ticks
            if shared.current != seen:
                seen, since_cpu, since_clock = shared.current, used, time.monotonic()
            elif (
                used - since_cpu > HANG_SECONDS
                or time.monotonic() - since_clock > HANG_CLOCK_SECONDS
            ):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(descriptor)


def bomb(subject: Subject) -> dict[str, Any]:
    """Packs what is large and says nothing, and restores it with a limit that it exceeds."""
    import numpy as np

    members = subject.pack(np.zeros(BOMB_BYTES, np.uint8))
    counter = Counter()
    counter.reset()
    try:
        subject.restore_limited(members, BOMB_LIMIT)
        outcome = "exceeds the limit"
    except NotImplementedError:
        outcome = "has no limit"
    except Exception as error:  # whatever another project raises
        outcome = f"refused: {type(error).__name__}"
    return {
        "packed_bytes": sum(map(len, members.values())),
        "outcome": outcome,
        "peak_bytes": counter.peak(),
    }


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Runs all kinds on the subject of a task."""
    with tempfile.TemporaryDirectory(dir=task["scratch"]) as scratch:
        try:
            subject = makers(Path(scratch))[task["subject"]]()
        except ImportError as error:
            return {"missing": str(error)}
        forms: Forms
        forms, intact = in_child(
            lambda: (packed := forms_of(subject), intact_peaks(subject, packed))
        )
        kinds = [kind for kind in KINDS if subject.is_ours or kind not in OURS_ONLY]
        share = task["share"] * SHARES.get(task["subject"], 1)
        found = {}
        for kind in kinds:
            tally = Run(subject, forms, intact, kind, share).run()
            if kind in OURS_ONLY:
                # What decodes to other bytes is another tensor, and says so.
                tally.detected, tally.silent = tally.detected + tally.silent, 0
            found[kind] = asdict(tally)
            print(f"    {subject.name}: {kind}: {found[kind]}", file=sys.stderr)
        return {"kinds": found, "bomb": in_child(lambda: bomb(subject))}
