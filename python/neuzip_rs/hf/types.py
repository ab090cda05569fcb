"""Names for what transformers hands over: it brings no types that mypy could use here."""

from typing import Any, TypeAlias

Model: TypeAlias = Any
"""A `transformers.PreTrainedModel`."""
Converter: TypeAlias = Any
"""A `WeightConverter` or `WeightRenaming` of `transformers.core_model_loading`."""
Dtype: TypeAlias = Any
"""A `torch.dtype`, or None."""
Tensor: TypeAlias = Any
"""A `torch.Tensor`."""
Pending: TypeAlias = Any
"""A `Future` of a tensor, or a function that returns one."""
