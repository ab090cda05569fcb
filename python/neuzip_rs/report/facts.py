"""What a report shows: sizes by tensor, field and layer, and histograms."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neuzip_rs import _native
from neuzip_rs.cli.contents import describe_directory, describe_file, merged_fields
from neuzip_rs.cli.forecast import Forecast
from neuzip_rs.directory.content import COMPRESSED_KINDS, Progress
from neuzip_rs.directory.tree import scan
from neuzip_rs.report import exponents
from neuzip_rs.report.exponents import Histogram

_MODELS: Final = ("safetensors", "neuzip-safetensors")
_NUMBERED: Final = re.compile(r"^(.*?(?:^|[._/])\d+)(?:[._/]|$)")
_SPELLED: Final = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that belong together: a layer, or all that have a type."""

    name: str
    tensors: tuple[dict[str, Any], ...]
    exponents: Histogram | None = None

    @property
    def original_bytes(self) -> int:
        """Bytes before."""
        return sum(tensor["original_bytes"] for tensor in self.tensors)

    @property
    def stored_bytes(self) -> int:
        """Bytes after."""
        return sum(tensor["compressed_bytes"] for tensor in self.tensors)

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.stored_bytes / self.original_bytes if self.original_bytes else 1.0

    def fields(self) -> list[dict[str, Any]]:
        """The fields of the tensors, added up, in the order of the elements' bits."""
        return merged_fields(field for tensor in self.tensors for field in tensor["fields"] or ())

    def parts(self) -> dict[str, int]:
        """Stored bytes by how they are stored: coded, raw, and all else."""
        parts = {"coded": 0, "raw": 0, "other": 0}
        for field in self.fields():
            parts["coded" if field["mode"] == "coded" else "raw"] += field["stored_bytes"]
        parts["other"] = self.stored_bytes - parts["coded"] - parts["raw"]
        return parts


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a model."""

    name: str
    original_bytes: int
    stored_bytes: int
    estimated: bool
    """Whether it is not compressed, and the sizes say what compressing would give."""
    tensors: tuple[dict[str, Any], ...]
    histograms: dict[str, dict[str, Histogram]]
    """By the type's name and the tensor's."""

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.stored_bytes / self.original_bytes if self.original_bytes else 1.0

    def types(self) -> list[Group]:
        """The tensors by type, the largest first."""
        groups = _grouped(self.tensors, lambda tensor: tensor["dtype"])
        return sorted(
            (Group(name, tensors, self._exponents(name)) for name, tensors in groups.items()),
            key=lambda group: -group.original_bytes,
        )

    def layers(self) -> list[Group]:
        """The tensors by layer, as their names tell, in natural order."""
        groups = _grouped(self.tensors, lambda tensor: layer_of(tensor["name"]))
        ordered = sorted(groups.items(), key=lambda item: natural(item[0]))
        return [Group(name, tensors) for name, tensors in ordered]

    def _exponents(self, dtype: str) -> Histogram | None:
        counted = self.histograms.get(dtype)
        return exponents.total(list(counted.values())) if counted else None


def gather(
    path: Path,
    *,
    level: str = "default",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Facts:
    """Looks at a model; nothing is written.

    Args:
        path: A file or a directory, compressed or not.
        level: What a model that is not compressed would be compressed with.
        threads: How many threads may work, by default all.
        progress: Called with the bytes done and the bytes in all.

    Raises:
        CorruptDataError: A file is damaged.
        NeuzipError: There is nothing to show.
    """
    report = progress or (lambda _done, _total: None)
    files = [file.path for file in scan(path).files] if path.is_dir() else [path]
    kinds = {file: _native.content_kind(str(file)) for file in files}
    compressed = any(kind in COMPRESSED_KINDS for kind in kinds.values())
    if compressed:
        describe = describe_directory if path.is_dir() else describe_file
        facts = describe(path, measure=True)
    else:
        forecast = Forecast(level, threads, report)
        one = not path.is_dir()
        facts = forecast.file(path, kinds[path]) if one else forecast.directory(path)
    tensors = [tensor for part in facts.get("files", [facts]) for tensor in part["tensors"]]
    histograms: dict[str, dict[str, Histogram]] = {}
    for file, kind in kinds.items():
        if kind in _MODELS:
            for spelling, counted in exponents.count(file, threads).items():
                histograms.setdefault(_SPELLED[spelling], {}).update(counted)
    stored = facts["compressed_bytes"]
    original = facts["original_bytes"]
    return Facts(
        name=path.resolve().name,
        original_bytes=original,
        stored_bytes=original if stored is None else stored,
        estimated=not compressed,
        tensors=tuple(tensor for tensor in tensors if tensor["compressed_bytes"] is not None),
        histograms=histograms,
    )


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: up to the first number, or all but the last part."""
    numbered = _NUMBERED.match(name)
    if numbered:
        return numbered[1]
    return name.rpartition(".")[0] or name


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _grouped(
    tensors: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> dict[str, tuple[dict[str, Any], ...]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for tensor in tensors:
        groups.setdefault(key(tensor), []).append(tensor)
    return {name: tuple(members) for name, members in groups.items()}
