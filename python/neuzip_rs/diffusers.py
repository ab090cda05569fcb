"""Compressed models in diffusers: import this module once, then use diffusers as ever.

    import neuzip_rs.diffusers
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained("unet-nz")     # what `neuzip compress unet` wrote

Weights are decoded while they are loaded, shard by shard, and are ordinary parameters then. What is
saved is plain: `neuzip compress` it. Pipelines are directories of models, which are compressed one
by one.
"""

from enum import StrEnum
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


class NeuzipQuantizer(DiffusersQuantizer):
    """Decodes the tensors of a checkpoint; nothing is quantized."""

    def __init__(self, quantization_config: NeuzipConfig, **kwargs: Any) -> None:
        """Made by diffusers, once for each model that is loaded."""
        super().__init__(quantization_config, **kwargs)
        self._files: dict[str, safe_open] = {}
        self._stored: list[tuple[safe_open, str]] = []

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: Files
    ) -> list[str]:
        """Opens the files that are compressed; names are those of the plain ones."""
        files = [checkpoint_files] if isinstance(checkpoint_files, str) else checkpoint_files or ()
        for path in map(str, files):
            if _native.content_kind(path) == "neuzip-safetensors":
                file = safe_open(path, "pt")
                self._stored.append((file, path))
                self._files.update(dict.fromkeys(file.keys(), file))
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
            for file, path in self._stored:
                known = _name_of(path, tensor)
                if known is not None:
                    return file.get_tensor(known)
        return tensor

    def _process_model_before_weight_loading(self, model: Model, **_: Any) -> Model:
        return model

    def _process_model_after_weight_loading(self, model: Model, **_: Any) -> Model:
        for file in {id(file): file for file in self._files.values()}.values():
            file.__exit__(None, None, None)
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


def _name_of(path: str, stored: Tensor) -> str | None:
    """The name that a compressed file has for what it stores; None if it has no such thing."""
    with safetensors.safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            # Of small tensors the shape alone tells which stream they are in, and where.
            if file.get_slice(name).get_shape() == list(stored.shape) and torch.equal(
                file.get_tensor(name), stored
            ):
                return str(name)
    return None


auto.AUTO_QUANTIZER_MAPPING.setdefault(_METHOD, NeuzipQuantizer)
auto.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(_METHOD, NeuzipConfig)
