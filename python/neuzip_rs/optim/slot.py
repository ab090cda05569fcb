"""One parameter and the optimizer of its own that updates it.

Optimizers write into parameters in place, which compressed ones refuse. Each optimizer therefore
has a stand-in that is the parameter while it is being updated, and without memory otherwise.
"""

from typing import Any, Final

import torch
from torch import nn

from neuzip_rs.nn.weight import CompressedWeight
from neuzip_rs.optim import states
from neuzip_rs.optim.refuse import Factory, check_optimizer

Options = dict[str, Any]
"""A parameter group without its parameters."""

_MISSING: Final = object()
_OWN_OPTIONS: Final = {"params", "foreach"}
_OWN_ATTRIBUTES: Final = {"record", "geometry", "_is_param"}


class Slot:
    """A parameter, its stand-in, and its optimizer.

    Attributes:
        name: The parameter's name in the model.
        leaf: The parameter.
        fired: How many gradients have arrived since the last step.
        group: The parameter group of `InBackward` that it is in.
    """

    group: Options

    def __init__(self, name: str, leaf: nn.Parameter, factory: Factory) -> None:
        """Makes the optimizer.

        Raises:
            TypeError: If the factory returns none, or one that cannot work on one parameter.
            ValueError: If it returns one of other parameters.
        """
        self.name = name
        self.leaf: torch.Tensor = leaf
        self.fired = 0
        # The factory may look at values, as at shape, type and attributes.
        self._stand_in = nn.Parameter(plain(leaf))
        own = {k: v for k, v in leaf.__dict__.items() if k not in _OWN_ATTRIBUTES}
        self._stand_in.__dict__.update(own)
        self._optimizer = check_optimizer(factory([self._stand_in]))
        used = [group for group in self._optimizer.param_groups if group["params"]]
        if len(used) != 1 or [id(p) for p in used[0]["params"]] != [id(self._stand_in)]:
            message = (
                "factory must return an optimizer of the parameters that it is given: it is called "
                "once for each parameter, with a list of one"
            )
            raise ValueError(message)
        self._optimizer.param_groups = used
        self._group: Options = used[0]
        if not self._group.get("fused") and "foreach" in self._group:
            # One parameter at a time: there is nothing to do for each of several.
            self._group["foreach"] = False
        self._seen: Options = {}
        self._rest()

    @property
    def options(self) -> Options:
        """The options that the factory chose."""
        return {key: value for key, value in self._group.items() if key != "params"}

    @property
    def defaults(self) -> Options:
        """The defaults of the optimizer."""
        return {**self._optimizer.defaults, **self.options}

    @property
    def state(self) -> dict[str, Any]:
        """The state, the very dict that the optimizer uses; empty before the first update."""
        found: dict[str, Any] | None = self._optimizer.state.get(self._stand_in)
        return {} if found is None else found

    def use_state(self, state: dict[str, Any] | None) -> None:
        """Makes the optimizer go on from a state, None for a new one."""
        if state is None:
            self._optimizer.state.pop(self._stand_in, None)
        else:
            self._optimizer.state[self._stand_in] = state

    def upgrade(self) -> None:
        """Lets the optimizer bring a state of an older version up to date, as it does itself."""
        own = self._optimizer
        own.__setstate__({"state": own.state, "param_groups": own.param_groups})

    def update(self, gradient: torch.Tensor, *, compress_states: bool) -> None:
        """Updates the parameter, and its code where it has one.

        If the optimizer raises, a compressed parameter is as it was.

        Raises:
            TypeError: If the optimizer turns out to share values among parameters.
        """
        leaf, stand_in = self.leaf, self._stand_in
        compressed = leaf if isinstance(leaf, CompressedWeight) else None
        self._take_options()
        try:
            if compress_states:
                states.decompress(self.state)
            # Nothing may be decoded from here on: the memory would be taken for it.
            stand_in.data = compressed.decode_to_change() if compressed is not None else leaf.data
            stand_in.grad = gradient
            self._optimizer.step()
            stand_in.grad = None
            self._check_options()
            if compressed is None:
                # A graph that still needs the parameter as it was must not go on without a word.
                torch.autograd.graph.increment_version(leaf)
            else:
                compressed.encode_from(stand_in.data)
        finally:
            self._rest()
            if compress_states:
                states.compress(self.state)

    def _rest(self) -> None:
        self._stand_in.grad = None
        # The shape without the memory; a write into it raises.
        nothing = torch.empty((), dtype=self.leaf.dtype, device=self.leaf.device)
        self._stand_in.data = nothing.expand(self.leaf.shape)

    def _take_options(self) -> None:
        """Takes over what has been changed from outside, as by a scheduler."""
        seen, own = self._seen, self._group
        for key, value in self.group.items():
            if key not in _OWN_OPTIONS and seen.get(key, _MISSING) is not value:
                own[key] = seen[key] = value

    def _check_options(self) -> None:
        own = self._group
        for key, value in self._seen.items():
            if own.get(key) is not value:
                message = (
                    f"{type(self._optimizer).__qualname__} changes {key!r} of its group in step, "
                    "for all parameters together: it needs all gradients at once, and InBackward "
                    "has one at a time"
                )
                raise TypeError(message)


def plain(leaf: torch.Tensor) -> torch.Tensor:
    """The elements of a parameter: a compressed one's in memory of their own."""
    return leaf.decoded() if isinstance(leaf, CompressedWeight) else leaf.detach()
