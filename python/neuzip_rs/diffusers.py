"""Compressed models in diffusers: import this module once, then use diffusers as ever.

    import neuzip_rs.diffusers
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained("unet-nz")     # what `neuzip compress unet` wrote

Weights are decoded while they are loaded, shard by shard, and are ordinary parameters then. What is
saved is plain: `neuzip compress` it. Pipelines are directories of models, which are compressed one
by one.
"""

from enum import StrEnum
from functools import cached_property
from typing import Any, Final, TypeAlias

import safetensors
import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from neuzip_rs import _native
from neuzip_rs.safetensors import safe_open

__all__ = ["NeuzipConfig", "NeuzipQuantizer"]

Model: TypeAlias = Any
"""A `diffusers.ModelMixin`."""
Files: TypeAlias = Any
"""Paths of checkpoint files, or one of them."""
Tensor: TypeAlias = Any
"""A `torch.Tensor`."""
_METHOD: Final = "neuzip"


class _Method(StrEnum):
    """Diffusers asks the method's name for its value."""

    NEUZIP = _METHOD


class NeuzipConfig(QuantizationConfigMixin):
    """What `config.json` says of a compressed model: `{"quant_method": "neuzip"}`."""

    def __init__(self, **_: Any) -> None:
        """Takes what is stored; nothing in it is needed here."""
        self.quant_method: Any = _Method.NEUZIP

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` keeps."""
        return {"quant_method": _METHOD}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing has a default that could be left out."""
        return self.to_dict()


class _Stored:
    """A compressed file, and the plain file of bytes that it is to diffusers."""

    def __init__(self, path: str) -> None:
        self.file = safe_open(path, "pt")
        open_bytes: Any = safetensors.safe_open
        self._bytes = open_bytes(path, "pt")

    @cached_property
    def _names(self) -> dict[tuple[int, ...], list[str]]:
        """The names of the tensors by the shape of what is stored."""
        names: dict[tuple[int, ...], list[str]] = {}
        for name in self._bytes.keys():  # noqa: SIM118 - no dict
            shape = tuple(self._bytes.get_slice(name).get_shape())
            names.setdefault(shape, []).append(str(name))
        return names

    def name_of(self, stored: Tensor) -> str | None:
        """The name of the tensor that is stored so; None if it has no such thing."""
        # Of small tensors the shape alone tells which stream they are in, and where.
        for name in self._names.get(tuple(stored.shape), ()):
            if torch.equal(self._bytes.get_tensor(name), stored):
                return name
        return None

    def close(self) -> None:
        self.file.__exit__(None, None, None)
        self._bytes.__exit__(None, None, None)


class NeuzipQuantizer(DiffusersQuantizer):
    """Decodes the tensors of a checkpoint; nothing is quantized."""

    def __init__(self, quantization_config: NeuzipConfig, **kwargs: Any) -> None:
        """Made by diffusers, once for each model that is loaded."""
        super().__init__(quantization_config, **kwargs)
        self._files: dict[str, safe_open] = {}
        self._stored: list[_Stored] = []

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: Files
    ) -> list[str]:
        """Opens the files that are compressed; names are those of the plain ones."""
        files = [checkpoint_files] if isinstance(checkpoint_files, str) else checkpoint_files or ()
        for path in map(str, files):
            if _native.content_kind(path) == "neuzip-safetensors":
                stored = _Stored(path)
                self._stored.append(stored)
                self._files.update(dict.fromkeys(stored.file.keys(), stored.file))
        return loaded_keys

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Decodes the tensors of one file.

        Raises:
            CorruptDataError: If a tensor is damaged.
            BaseMismatchError: If one needs another file that is missing.
        """
        if not self._files:
            return state_dict
        return {name: self._decoded(name, tensor) for name, tensor in state_dict.items()}

    def _decoded(self, name: str, tensor: Tensor) -> Tensor:
        file = self._files.get(name)
        if file is not None:
            return file.get_tensor(name)
        # Diffusers gave an old name up, so that what the file has under it has to do.
        if tensor.dtype == torch.uint8:
            for stored in self._stored:
                known = stored.name_of(tensor)
                if known is not None:
                    return stored.file.get_tensor(known)
        return tensor

    def _process_model_before_weight_loading(self, model: Model, **_: Any) -> Model:
        return model

    def _process_model_after_weight_loading(self, model: Model, **_: Any) -> Model:
        for stored in self._stored:
            stored.close()
        self._files = {}
        self._stored = []
        model.is_quantized = False
        return model

    def _dequantize(self, model: Model) -> Model:
        return model

    @property
    def is_serializable(self) -> bool:
        """Whether models can be saved: they can."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether models can be trained: they can."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` takes a model: it does."""
        return True


auto.AUTO_QUANTIZER_MAPPING.setdefault(_METHOD, NeuzipQuantizer)
auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(_METHOD, NeuzipConfig)
