"""What a user may say about loading a compressed model, and what `config.json` keeps of it."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from transformers.quantizers import auto, register_quantization_config
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from neuzip_rs._arguments import check_level, check_threads

METHOD: Final = "neuzip"
Names: TypeAlias = str | Iterable[str] | Callable[[str, Any], bool]
"""Which parameters: patterns, or a function of name and parameter."""
_logger = logging.get_logger(__name__)


class NeuzipConfig(QuantizationConfigMixin):
    """How weights are decoded while loading, and compressed while saving.

    In `config.json` this is `{"quant_method": "neuzip"}`, with the level if it is not "default".
    Everything else belongs to one call of `from_pretrained` and is not stored.

        from_pretrained("model-nz", quantization_config=NeuzipConfig(keep_compressed=True))

    gives a model whose weights stay compressed in memory (`neuzip_rs.nn`), also from a directory
    that is not compressed.
    """

    def __init__(
        self,
        keep_compressed: bool = False,
        precision: int | None = None,
        *,
        block_size: int = 512,
        include: Names | None = None,
        exclude: Names | None = None,
        min_numel: int = 4096,
        level: str = "default",
        threads: int | None = None,
        verify: bool = True,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        """Checks and keeps the settings.

        Args:
            keep_compressed: Whether weights stay compressed and are decoded for each use.
            precision: How many mantissa bits to keep of weights that stay compressed; by default
                all, which is lossless.
            block_size: Elements that are scaled together where a precision is given.
            include: Which parameters stay compressed, as in `nz.nn.compress_`; by default all.
            exclude: Which do not, of those.
            min_numel: Parameters with fewer elements are plain.
            level: "fast", "default" or "max": what `save_pretrained` compresses with.
            threads: How many threads may work, by default `NEUZIP_NUM_THREADS` or every core.
            verify: Check the hash of everything decoded.
            quant_method: "neuzip"; there because `config.json` names it.
            unknown: Settings in the `config.json` of a later release; ignored with a warning.

        Raises:
            ValueError: If a setting has no such value, or belongs to `keep_compressed`.
        """
        if precision is not None and not keep_compressed:
            message = "precision is of weights that stay compressed: it needs keep_compressed=True"
            raise ValueError(message)
        check_level(level)
        check_threads(threads)
        if quant_method != METHOD:
            message = f"quant_method must be {METHOD!r}, not {quant_method!r}"
            raise ValueError(message)
        if unknown:
            _logger.warning(f"neuzip settings that this release does not know: {sorted(unknown)}")
        self.quant_method = quant_method
        self.keep_compressed = keep_compressed
        self.precision = precision
        self.block_size = block_size
        self.include = include
        self.exclude = exclude
        self.min_numel = min_numel
        self.level = level
        self.threads = threads
        self.verify = verify

    def get_loading_attributes(self) -> dict[str, Any]:
        """What `from_pretrained(quantization_config=...)` says anew for a compressed model."""
        return {name: value for name, value in vars(self).items() if name != "quant_method"}

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` keeps."""
        kept: dict[str, Any] = {"quant_method": self.quant_method}
        if self.level != "default":
            kept["level"] = self.level
        return kept


def register() -> None:
    """Makes transformers know the configuration."""
    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(NeuzipConfig)
        # Only of these types does transformers merge what the user says into what is stored.
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (
            *auto.LOADING_ATTRIBUTES_CONFIG_TYPES,
            NeuzipConfig,
        )


register()
