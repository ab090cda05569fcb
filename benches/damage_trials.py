"""The kinds of damage: what each does to the members of a form, trial by trial.

Every trial follows from its kind and number alone, so that one that fails can be run again. A trial
returns None where it would change nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benches.damage_subjects import Members

MAGIC = bytes.fromhex("894e5a01")
# What a length may claim: a little more than there is, and far too much.
HUGE = (1 << 16, 1 << 24, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 62) + 1, (1 << 64) - 1)
HEAD_BYTES = 96


@dataclass(frozen=True)
class Form:
    """Something packed, and the bytes that it restores to."""

    members: Members
    original: bytes
    size: int


@dataclass(frozen=True)
class Forms:
    """What a subject has packed: little, more of it, more of other weights, and noise."""

    small: Form
    large: Form
    other: Form
    noise: Form


Trial = tuple[Form, "Members"]


def truncations(forms: Forms) -> int:
    """The number of lengths that there are."""
    return sum(len(content) for content in forms.small.members.values())


def truncation(forms: Forms, number: int) -> Trial | None:
    """Every member cut off at every length."""
    for name, content in forms.small.members.items():
        if number < len(content):
            return forms.small, {**forms.small.members, name: content[:number]}
        number -= len(content)
    return None


def _member(members: Mapping[str, bytes], rng: random.Random) -> str:
    names = list(members)
    return rng.choices(names, [len(members[name]) + 64 for name in names])[0]


def flip(forms: Forms, number: int) -> Trial | None:
    """One to four bytes changed, by one bit or to anything; often in the head or at the end."""
    rng = random.Random(f"flip {number}")
    form = forms.small if number % 2 else forms.large
    name = _member(form.members, rng)
    data = bytearray(form.members[name])
    where = rng.choice(["anywhere", "anywhere", "head", "end"])
    for _ in range(rng.choice([1, 1, 2, 4])):
        if where == "head":
            at = rng.randrange(min(256, len(data)))
        elif where == "end":
            at = len(data) - 1 - rng.randrange(min(64, len(data)))
        else:
            at = rng.randrange(len(data))
        data[at] ^= 1 << rng.randrange(8) if number % 3 else rng.randrange(1, 256)
    return _changed(form, name, bytes(data))


def splice(forms: Forms, number: int) -> Trial | None:
    """The beginning of one and the end of another, each intact; or one behind the other."""
    rng = random.Random(f"splice {number}")
    name = _member(forms.large.members, rng)
    place = list(forms.large.members).index(name)
    a, b = forms.large.members[name], list(forms.other.members.values())[place]
    way = rng.randrange(8)
    if way == 0:
        data = a + b
    elif way == 1:
        data = a + a
    elif way == 2:
        data = b[: rng.randrange(1, 64)] + a
    else:
        cut = rng.randrange(min(len(a), len(b), 512 if way < 5 else len(a)))
        data = a[:cut] + b[cut:]
    # The whole of another one is no damage.
    return None if data == b else _changed(forms.large, name, data)


def swap(forms: Forms, number: int) -> Trial | None:
    """Two blocks that have changed places: of stored chunks, where the content lies as it was."""
    rng = random.Random(f"swap {number}")
    form = forms.noise if number % 2 else forms.large
    name = max(form.members, key=lambda name: len(form.members[name]))
    data = bytearray(form.members[name])
    size = 1 << rng.randrange(4, 18)
    begin = 0
    if number % 2:
        # Noise is stored as it is: chunks follow each other.
        begin = max(data.find(form.original[4096:4128]) - 4096, 0)
        size = max(size, 4096)
    blocks = (len(data) - begin) // size
    if blocks < 2:
        return None
    i, j = (begin + size * block for block in rng.sample(range(blocks), 2))
    data[i : i + size], data[j : j + size] = data[j : j + size], data[i : i + size]
    return _changed(form, name, bytes(data))


def huge_length(forms: Forms, number: int) -> Trial | None:
    """A number of any width, at each place of the head and of the end, that claims far too much."""
    return _huge(forms, number, forge=False)


def forged_length(forms: Forms, number: int) -> Trial | None:
    """The same, with the checksums of the headers made to fit again; for ours only."""
    return _huge(forms, number, forge=True)


def _huge(forms: Forms, number: int, *, forge: bool) -> Trial | None:
    rng = random.Random(f"huge {number}")
    form = forms.small
    name = _member(form.members, rng)
    content = form.members[name]
    value = HUGE[number % len(HUGE)]
    number //= len(HUGE)
    encoded = (
        value.to_bytes(8, "little"),
        (value & 0xFFFFFFFF).to_bytes(4, "little"),
        varint(value),
    )[number % 3]
    number //= 3
    begin = content.find(MAGIC) if forge else 0
    at = begin + number if number < HEAD_BYTES else len(content) - 1 - (number - HEAD_BYTES)
    if begin < 0 or not 0 <= at < len(content):
        return None
    # Numbers of variable width take the place of one byte.
    width = 1 if encoded == varint(value) else len(encoded)
    data = content[:at] + encoded + content[at + width :]
    if forge:
        data = forged(data, begin)
    return _changed(form, name, data)


def huge_lengths(_forms: Forms) -> int:
    """The number of places, values and widths."""
    return len(HUGE) * 3 * (HEAD_BYTES + 32)


def varint(value: int) -> bytes:
    """LEB128."""
    encoded = bytearray()
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    return bytes([*encoded, value])


def forged(data: bytes, begin: int) -> bytes:
    """Gives the tensor stream at `begin` the checksum that its header should have now."""
    at, length, shift = begin + len(MAGIC), 0, 0
    while at < len(data) and shift < 28:
        length |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            break
    end = begin + length
    if not begin + 8 <= end <= len(data):
        return data
    checksum = xxhash.xxh3_64_intdigest(data[begin : end - 4]) & 0xFFFFFFFF
    return data[: end - 4] + checksum.to_bytes(4, "little") + data[end:]


def _changed(form: Form, name: str, data: bytes) -> Trial | None:
    if data == form.members[name]:
        return None
    return form, {**form.members, name: data}


def _fixed(count: int) -> Callable[[Forms], int]:
    return lambda _forms: count


# What does it, and how many trials there are.
KINDS: dict[str, tuple[Callable[[Forms, int], Trial | None], Callable[[Forms], int]]] = {
    "truncation": (truncation, truncations),
    "flips": (flip, _fixed(10_000)),
    "splices": (splice, _fixed(1_000)),
    "swapped chunks": (swap, _fixed(1_000)),
    "huge lengths": (huge_length, huge_lengths),
    "forged lengths": (forged_length, huge_lengths),
}
OURS_ONLY = ("forged lengths",)
