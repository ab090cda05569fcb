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

import torch
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

import neuzip_rs
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

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: Files
    ) -> list[str]:
        """Opens the files that are compressed; names are those of the plain ones."""
        files = [checkpoint_files] if isinstance(checkpoint_files, str) else checkpoint_files or ()
        for path in map(str, files):
            if _native.content_kind(path) == "neuzip-safetensors":
                file = safe_open(path, "pt")
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
        if tensor.dtype != torch.uint8 or tensor.dim() != 1:
            return tensor
        # Diffusers gave an old name up, so that the tensor's bytes have to do.
        return neuzip_rs.decompress(tensor.numpy(), framework="torch")

    def _process_model_before_weight_loading(self, model: Model, **_: Any) -> Model:
        return model

    def _process_model_after_weight_loading(self, model: Model, **_: Any) -> Model:
        for file in {id(file): file for file in self._files.values()}.values():
            file.__exit__(None, None, None)
        self._files = {}
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
