"""The quantization method "neuzip", as transformers sees it.

Nothing is quantized: the weights of a loaded model have the bits that they had before compressing.
It is the one place where transformers lets a checkpoint say how its tensors are stored.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.quantizers import HfQuantizer, auto, register_quantizer

from neuzip_rs.hf.config import METHOD, NeuzipConfig
from neuzip_rs.hf.loading import AnyConverter, Checkpoint, DecodeAlone, collecting
from neuzip_rs.hf.saving import save_pretrained
from neuzip_rs.hf.types import Converter, Dtype, Model, Tensor

if TYPE_CHECKING:
    from neuzip_rs.hf.kept import Keeper


class NeuzipQuantizer(HfQuantizer):
    """Loads compressed checkpoints and lets models that came from them save compressed ones."""

    quantization_config: NeuzipConfig

    def __init__(self, quantization_config: NeuzipConfig, **kwargs: Any) -> None:
        """Made by transformers, once for each model that is loaded."""
        super().__init__(quantization_config, **kwargs)
        self._checkpoint: Checkpoint | None = None
        self._dtype_guessed = False
        self._keeper: Keeper | None = None
        self._own_converters: list[tuple[Any, Any]] = []

    # --- loading, in the order in which transformers calls ------------------------------------

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The type that the model is built with.

        Without one in the configuration transformers looks at the files, and finds bytes.
        """
        self._dtype_guessed = not dtype.is_floating_point
        return torch.get_default_dtype() if self._dtype_guessed else dtype

    def _process_model_before_weight_loading(self, model: Model, **kwargs: Any) -> Model:
        _refuse_parallel(model)
        settings = self.quantization_config
        files = [str(path) for path in kwargs.get("checkpoint_files") or ()]
        self._checkpoint = Checkpoint(files, threads=settings.threads, verify=settings.verify)
        if settings.keep_compressed:
            # Only here: it needs neuzip_rs.nn.
            from neuzip_rs.hf.kept import Keeper

            self._keeper = Keeper(settings)
        if self._dtype_guessed:
            _give_dtype(model, self._checkpoint.dtype())
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Model) -> list[Any]:
        """Lets every converter of the model collect decoded tensors."""
        conversions: list[Any] = super().update_weight_conversions(weight_conversions, model)
        if not self._checkpoint:
            return conversions
        changed = []
        for conversion in conversions:
            if isinstance(conversion, WeightConverter):
                made = collecting(conversion, self._checkpoint, self._keeper)
                self._own_converters.append((made, conversion))
                changed.append(made)
            else:
                changed.append(conversion)
        return [*changed, AnyConverter(self._checkpoint, self._keeper)]

    def get_new_dtype(self, converter: Converter, param: Tensor, dtype: Dtype) -> Dtype:
        """What to cast a stored tensor to; compressed bytes to nothing, decoded ones later."""
        stored = param.get_dtype() if hasattr(param, "get_dtype") else None
        if not self._checkpoint or stored != "U8":
            return dtype
        if isinstance(converter, WeightRenaming):
            # A key that no converter was asked about: transformers took its renaming back.
            name = converter.source_patterns[0]
            if name in self._checkpoint:
                converter.quantization_operation = DecodeAlone(self._checkpoint, name, dtype)
        else:
            converter.wanted_dtype = dtype
        return None

    def postprocess_model(self, model: Model, **_: Any) -> Model:
        """Leaves a model that behaves as any other, and saves itself compressed."""
        if self._checkpoint is not None:
            self._checkpoint.raise_earlier()
            self._checkpoint.close()
            self._checkpoint = None
        # Saving undoes what the model's own converters did.
        original = {id(made): conversion for made, conversion in self._own_converters}
        model._weight_conversions = [
            original.get(id(conversion), conversion)
            for conversion in model._weight_conversions
            if not isinstance(conversion, AnyConverter)
        ]
        self._own_converters = []
        if self._keeper is not None:
            self._keeper.complete(model)
            self._keeper = None
        model.config.quantization_config = self.quantization_config
        model.is_quantized = False
        del model.quantization_method
        model.save_pretrained = partial(save_pretrained, model)
        return model

    # --- what a model can do ------------------------------------------------------------------

    def get_state_dict_and_metadata(self, model: Model) -> tuple[Any, dict[str, str]]:
        """What `save_pretrained` writes: weights that stay compressed are decoded for it."""
        if not self.quantization_config.keep_compressed:
            return None, {}
        from neuzip_rs.hf.kept import decoded_state

        return decoded_state(model), {}

    def _dequantize(self, model: Model, dtype: Dtype = None) -> Model:
        if self.quantization_config.keep_compressed:
            from neuzip_rs import nn

            nn.decompress_(model)
        # The bits that were compressed: no other type is wanted.
        del dtype
        return model

    def remove_quantization_config(self, model: Model) -> None:
        """Makes the model one that was never compressed."""
        model.__dict__.pop("save_pretrained", None)
        super().remove_quantization_config(model)

    def is_serializable(self) -> bool:
        """Whether models can be saved: they can."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on a model: they can."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the weights themselves can be trained: they can."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` takes a model: it does."""
        return True


def _refuse_parallel(model: Model) -> None:
    """Raises unless the whole of each weight is loaded.

    Raises:
        ValueError: If weights are to be distributed over processes.
    """
    plan = getattr(model.config, "distributed_config", None)
    sizes = ("tp_size", "pp_size", "ep_size", "fsdp_size", "dp_replicate_size")
    if any((getattr(plan, size, None) or 1) > 1 for size in sizes):
        message = (
            "compressed checkpoints cannot be loaded with tensor, pipeline, expert or data "
            "parallelism: transformers cuts the stored tensors up before they are decoded. "
            "Restore the directory with `neuzip decompress` and load that"
        )
        raise ValueError(message)


def _give_dtype(model: Model, dtype: torch.dtype | None) -> None:
    """Gives a model on the meta device the type of the checkpoint's weights."""
    built = torch.get_default_dtype()
    if dtype is None or dtype == built:
        return
    seen: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.dtype != built:
                continue
            if id(parameter) not in seen:
                seen[id(parameter)] = torch.nn.Parameter(
                    parameter.to(dtype), requires_grad=parameter.requires_grad
                )
            module._parameters[name] = seen[id(parameter)]
    for config in (model.config, *(getattr(model.config, key) for key in model.config.sub_configs)):
        if config is not None:
            config.dtype = dtype


def register() -> None:
    """Makes transformers know the method."""
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        register_quantizer(METHOD)(NeuzipQuantizer)


register()
