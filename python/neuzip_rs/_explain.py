"""Where the bits of a tensor go, and why it is stored as it is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

from neuzip_rs import _arrays, _native
from neuzip_rs._arguments import check_level, check_threads
from neuzip_rs._arrays import Array
from neuzip_rs._dtypes import parse_dtype
from neuzip_rs._native import CompressedTensor
from neuzip_rs._tensor import _with_dtype

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class Field:
    """Neighbouring bits of the elements that are stored in one way."""

    name: str
    """Which bits they are, such as "exponent + mantissa 1", "mantissa 6 + sign", "byte 0 of 4"."""
    mode: str
    """"coded", "raw", "raw without trailing zeros" or "constant"."""
    bits: int
    """Width in bits."""
    elements: int
    """Elements that have this field."""
    stored_bytes: int
    """Bytes it takes."""
    overhead_bytes: int
    """The part of them that does not depend on the data: states of the coder."""
    table_bits: float | None
    """Bits per value that the (first) table it is coded with is made for."""
    entropy_bits: float | None
    """Measured order-0 entropy in bits per value; beyond 16 bits of width that of the bytes."""

    @property
    def original_bytes(self) -> float:
        """Bytes of the original that these bits are."""
        return self.bits * self.elements / 8

    @property
    def stored_bits(self) -> float:
        """Bits per value that are stored."""
        return 8 * self.stored_bytes / self.elements if self.elements else 0.0

    @property
    def reason(self) -> str:
        """A sentence."""
        known = self.table_bits if self.entropy_bits is None else self.entropy_bits
        entropy = "" if known is None else f"{known:.2f} bits of entropy"
        if self.mode == "coded":
            what = f"{entropy} in {self.bits}" if entropy else f"{self.bits} bits"
            return f"{self.name}: {what}, coded in {self.stored_bits:.2f}"
        if self.mode == "constant":
            return f"{self.name}: {self.bits} bits, always the same"
        if self.mode == "raw":
            return f"{self.name}: {entropy or 'raw'} in {self.bits}" + (", raw" if entropy else "")
        left_out = self.bits - self.stored_bits
        return f"{self.name}: {left_out:.2f} of {self.bits} bits are trailing zeros, the rest raw"


@dataclass(frozen=True, slots=True)
class ScaleOffsets:
    """What is subtracted from the magnitude of the elements of each row and column."""

    columns: int
    """Elements in a row."""
    row_offsets: int
    """Number of rows with an offset; 0 if rows have none."""
    column_offsets: int
    """Number of columns with an offset; 0 if columns have none."""
    stored_bytes: int
    """Bytes the offsets take."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the bits of one tensor go."""

    original_bytes: int
    """Bytes of the tensor."""
    stored_bytes: int
    """Bytes of the compressed tensor."""
    exact: bool
    """Whether all of it was looked at; else the sizes are estimates from a part of its chunks."""
    body: str
    """"chunked", "constant", "reference" or "external"."""
    repeats: str | None
    """The tensor it repeats, of a reference."""
    fields: tuple[Field, ...]
    """Where the bytes are; these and `other_bytes` sum to `stored_bytes`."""
    other_bytes: int
    """Headers, tables, scale offsets, hashes, padding."""
    scale_offsets: ScaleOffsets | None
    """The scale offsets, if it has some."""
    alternatives: Mapping[str, int]
    """Bytes that other choices would take: "raw", "fast", "no scale offsets"; of estimates only."""

    @property
    def ratio(self) -> float:
        """Stored over original bytes; 1.0 for an empty tensor."""
        return self.stored_bytes / self.original_bytes if self.original_bytes else 1.0

    @property
    def modes(self) -> str:
        """How it is stored, in short: "coded9 + raw7, scale offsets by row and column"."""
        if self.body != "chunked":
            return self.body
        short = {"raw without trailing zeros": "zeros+raw"}
        planes = [
            f"{short.get(mode, mode)}{sum(field.bits for field in run)}"
            for mode, run in groupby(self.fields, key=lambda field: field.mode)
        ]
        axes = self._axes()
        return " + ".join(planes) + (f", scale offsets by {axes}" if axes else "")

    @property
    def reasons(self) -> list[str]:
        """Why it is stored so, in sentences."""
        if self.body == "constant":
            return ["every element is the same"]
        if self.repeats is not None:
            return [f"the same as {self.repeats}"]
        reasons = [field.reason for field in self.fields]
        scale = self.scale_offsets
        if scale is not None:
            text = f"scale offsets by {self._axes()}, {scale.columns} columns"
            reasons.append(f"{text}{self._compared('no scale offsets', ': without them ')}")
        others = [self._compared(name, f"{name}: ") for name in ("fast", "raw")]
        return [*reasons, *(other for other in others if other)]

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {**asdict(self), "alternatives": dict(self.alternatives), "why": self.reasons}

    @classmethod
    def from_native(cls, facts: Mapping[str, Any]) -> Self:
        """Reads what the Rust core says."""
        scale = facts["scale_offsets"]
        return cls(
            **{
                **facts,
                "fields": tuple(Field(**field) for field in facts["fields"]),
                "scale_offsets": None if scale is None else ScaleOffsets(**scale),
            }
        )

    def _axes(self) -> str:
        scale = self.scale_offsets
        if scale is None:
            return ""
        axes = ("row", scale.row_offsets), ("column", scale.column_offsets)
        return " and ".join(name for name, count in axes if count)

    def _compared(self, name: str, before: str) -> str:
        if name not in self.alternatives:
            return ""
        more = 100 * (self.alternatives[name] - self.stored_bytes) / max(1, self.original_bytes)
        return f"{before}{more:+.2f} % of the original"


def explain(c: "CompressedTensor | Buffer", *, measure: bool = False) -> Explanation:
    """Tells where the bits of a compressed tensor go.

    Args:
        c: What `compress` returned, or its bytes.
        measure: Decode some chunks and measure the entropy of every field. Without it nothing is
            decoded, and only the tables say what the coded fields were expected to take.

    Returns:
        The sizes, exact to the byte.

    Raises:
        CorruptDataError: If the bytes are damaged, or not compressed by neuzip_rs.
        UnsupportedVersionError: If they need a newer release.
    """
    tensor = c if isinstance(c, CompressedTensor) else CompressedTensor.from_bytes(c)
    return Explanation.from_native(tensor.explain(measure=measure))


def estimate(
    x: Array, *, dtype: object = None, level: str = "default", threads: int | None = None
) -> Explanation:
    """Tells what `compress` would make of an array, and what other choices would give.

    Planning is that of `compress`; of an array of more than 64 chunks (8 MiB) only 64, spread
    evenly, are encoded, and the rest is taken to be like them.

    Args:
        x: An array as `compress` takes it.
        dtype: What raw bytes hold.
        level: "fast", "default" or "max".
        threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.

    Returns:
        The sizes, and the measured entropy of every field.

    Raises:
        TypeError: If `x` cannot be compressed (object, sparse, quantized, ...).
        ValueError: If an argument has a value it cannot have.
    """
    source = _arrays.describe(x)
    if dtype is not None:
        source = _with_dtype(source, parse_dtype(dtype))
    check_level(level)
    if threads is not None:
        check_threads(threads)
    facts = _native.estimate(
        source.data, source.dtype, source.shape, level=level, threads=threads, hint=source.hint
    )
    return Explanation.from_native(facts)
