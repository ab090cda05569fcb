"""vLLM loads compressed checkpoints: `vllm serve model-nz --load-format neuzip`.

vLLM finds `register` by its entry point in every process; nothing has to be imported. Weights are
decoded tensor by tensor while they are loaded, and are plain after that.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

Settings: TypeAlias = Any
"""A `vllm.config.load.LoadConfig`."""
Source: TypeAlias = Any
"""A `DefaultModelLoader.Source`."""
_NAME: Final = "neuzip"


def register() -> None:
    """Makes vLLM know the load format "neuzip", and that such a checkpoint is not quantized."""
    from vllm.model_executor.layers.quantization import register_quantization_config
    from vllm.model_executor.model_loader import _LOAD_FORMAT_TO_MODEL_LOADER, register_model_loader

    if _NAME in _LOAD_FORMAT_TO_MODEL_LOADER:
        return
    register_model_loader(_NAME)(_loader())
    register_quantization_config(_NAME)(_configuration())


def _loader() -> type:
    import torch
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

    from neuzip_rs.safetensors import safe_open

    class NeuzipModelLoader(DefaultModelLoader):
        """Loads .safetensors files, compressed or not."""

        def __init__(self, load_config: Settings) -> None:
            # Which files there are is found out as for plain ones.
            super().__init__(dataclasses.replace(load_config, load_format="safetensors"))

        def _get_weights_iterator(self, source: Source) -> Iterator[tuple[str, torch.Tensor]]:
            _, files, is_safetensors, _ = self._prepare_weights(
                source.model_or_path,
                source.subfolder,
                source.revision,
                source.fall_back_to_pt,
                source.allow_patterns_overrides,
            )
            if not is_safetensors:
                yield from super()._get_weights_iterator(source)
                return
            for path in sorted(files):
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - no dict
                        if not should_skip_weight(name, self.local_expert_ids):
                            yield source.prefix + name, file.get_tensor(name)

    return NeuzipModelLoader


def _configuration() -> type:
    import torch
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

    class NeuzipQuantizationConfig(QuantizationConfig):
        """`config.json` names a method of quantization; there is none after loading."""

        def get_name(self) -> str:
            return _NAME

        def get_supported_act_dtypes(self) -> list[torch.dtype]:
            return [torch.bfloat16, torch.float16, torch.float32]

        @classmethod
        def get_min_capability(cls) -> int:
            return 0

        @staticmethod
        def get_config_filenames() -> list[str]:
            return []

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> "NeuzipQuantizationConfig":
            del config
            return cls()

        def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> object:
            del prefix
            # None is the plain method, but for linear layers, which want to be told.
            return UnquantizedLinearMethod() if isinstance(layer, LinearBase) else None

    return NeuzipQuantizationConfig
