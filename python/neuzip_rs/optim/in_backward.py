"""`InBackward`: an optimizer that works while backward does.

Each parameter has a hook that torch calls when its gradient is complete. The hook updates that one
parameter with an optimizer of its own, encodes it again and frees the gradient, so that there is
never more than one decoded weight and one gradient (two for a tied weight).

Invariants:
1. The numbers are those of the same optimizer stepping over all parameters afterwards: what one
   parameter's update needs is its own gradient, state and options, and nothing is drawn at random.
2. Options live in `param_groups` and states in `state`, as with every optimizer; the optimizers of
   the parameters take their options from there before each update, and share their states.
3. Between an update and `step()`, `parameter.grad` is a `SpentGradient`, which raises on any use.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from neuzip_rs.nn.weight import CompressedWeight
from neuzip_rs.optim import states
from neuzip_rs.optim.data_parallel import DataParallel, ProcessGroup
from neuzip_rs.optim.refuse import (
    Factory,
    check_factory,
    check_model,
    check_parameter,
    check_steps,
)
from neuzip_rs.optim.slot import Options, Slot
from neuzip_rs.optim.spent import SpentGradient
from neuzip_rs.optim.trainer import teach_trainer
from neuzip_rs.optim.two_passes import GradientNorm

Loss: TypeAlias = Any
"""What a closure returns, mostly a float."""

_FORMAT: Final = "neuzip_rs"
"""The key by which a state dict is known to be exact: torch's own casts states when loading."""


class _Hook:
    """What torch calls when a gradient is complete. It does not keep the optimizer alive."""

    def __init__(self, optimizer: "InBackward") -> None:
        self.optimizer = weakref.ref(optimizer)

    def __call__(self, leaf: torch.Tensor) -> None:
        optimizer = self.optimizer()
        if optimizer is not None:
            optimizer._gradient_ready(leaf)


class InBackward(torch.optim.Optimizer):
    """Updates each parameter during backward, as soon as its gradient is complete.

        opt = InBackward(model, lambda params: torch.optim.AdamW(params, lr=1e-3))
        for batch in batches:
            loss = model(batch)
            loss.backward()          # updates
            opt.step()               # ends the step
            opt.zero_grad()

    Losses, weights and states are bit for bit those of the same loop with the factory's optimizer
    (`foreach=False`). The parameters may be compressed (`nz.nn.compress_`) or plain, and may become
    the one or the other in between. Learning-rate schedulers work on it as on any optimizer.

    Keep the optimizer as long as you train: with it, its hooks go, and gradients pile up again.

    The parameters trained are those that require gradients when it is made. Freezing one later
    stops its updates; for one that is thawed or added later, call `add_param_group`.

    Attributes:
        accumulate_steps: Backward passes to a step; may be changed between steps.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: Factory,
        *,
        compress_states: bool = False,
        accumulate_steps: int = 1,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Prepares a model for being trained in backward.

        Args:
            model: Any module; not one wrapped for data parallelism.
            factory: Makes an optimizer of a list of parameters. It is called once for each
                parameter, with a list of one, a plain stand-in of the same shape, type and values.
                Parameters for which it chooses the same options share a group. `foreach` is off
                whatever it says: there is one parameter at a time.
            compress_states: Whether states (momentum and the like) are compressed as well whenever
                they are not in use.
            accumulate_steps: Backward passes to a step. Gradients are added up, and all of them
                are kept from the first pass to the last one.
            process_group: Processes that train copies of the model on inputs of their own, such as
                `torch.distributed.group.WORLD`. They start from the first one's parameters and
                buffers; each gradient is averaged before it is used. Buffers are not kept equal.

        Raises:
            TypeError: If an argument is not what it should be, the model is wrapped (DDP, FSDP), or
                the optimizer needs all gradients at once.
            ValueError: If no parameter requires a gradient, or one is compressed with loss.
        """
        self._model = check_model(model)
        self._factory = check_factory(factory)
        self.accumulate_steps = check_steps(accumulate_steps)
        self._compress_states = bool(compress_states)
        self._parallel = None if process_group is None else DataParallel(process_group)
        self._clip_value: float | None = None
        self._measured: GradientNorm | None = None
        self._measuring = False
        self._slots: dict[torch.Tensor, Slot] = {}
        self._handles: dict[torch.Tensor, RemovableHandle] = {}
        self._finalizer = weakref.finalize(self, _remove_all, self._handles)
        self._finalizer.atexit = False
        if self._parallel is not None:
            self._parallel.share(model)

        groups: list[dict[str, Any]] = []
        for name, leaf in model.named_parameters():
            if leaf.requires_grad:
                check_parameter(name, leaf)
                self._slots[leaf] = slot = Slot(name, leaf, self._factory)
                _group_for(slot.options, groups)["params"].append(leaf)
        if not groups:
            message = "no parameter of the model requires a gradient: there is nothing to train"
            raise ValueError(message)
        super().__init__(groups, {})
        # Schedulers look here for what can be scheduled.
        self.defaults = next(iter(self._slots.values())).defaults
        self._adopt(list(self._slots.values()))

    # --- what torch asks of an optimizer ----------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Trains more parameters of the model.

        Args:
            param_group: "params", and options that differ from the factory's choice.

        Raises:
            TypeError: If "params" has something that is no parameter.
            ValueError: If a parameter is trained already, frozen, or not in the model.
        """
        given = {key: value for key, value in param_group.items() if key != "params"}
        params = param_group["params"]
        leaves = [params] if isinstance(params, torch.Tensor) else list(params)
        new = [leaf for leaf in leaves if leaf not in self._slots]
        if new:
            names = {leaf: name for name, leaf in self._model.named_parameters()}
            slots = [self._new_slot(leaf, names) for leaf in new]
            given = {**slots[0].options, **given}
        super().add_param_group({"params": leaves, **given})
        if new:
            self._adopt(slots)
        self._link_groups()

    def step(self, closure: Callable[[], Loss] | None = None) -> Loss:
        """Ends a step. The updates have been made in backward, except for what is done here.

        Gradients that are still there are used now: those of an accumulation that ended early, and
        of parameters that had lost their hook (`Module.to` may take it away), which get a new one.

        Args:
            closure: Computes the loss and calls backward, if given.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: If a parameter of the model has a gradient and is not trained.
        """
        self._check_alive()
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._finish_all()
        self._measured = None
        self._check_others()
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002  # always to None
        """Drops gradients that have not been used, as every optimizer does.

        Args:
            set_to_none: Without effect: no gradient is kept to be filled with zeros.
        """
        lost = []
        for leaf, slot in self._slots.items():
            if slot.fired == 0 and _real_gradient(leaf) is not None:
                self._arm(slot)
                lost.append(slot.name)
            leaf.grad = None
            slot.fired = 0
        if self._parallel is not None:
            self._parallel.reset()
        if lost:
            message = (
                f"the hooks of {len(lost)} parameters ({lost[0]!r}, ...) were lost, so that their "
                "last gradients are dropped without having been used; call step() before zero_grad"
            )
            warnings.warn(message, stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The states and options, as the factory's optimizer would have them.

        States are plain tensors here, also those that are kept compressed.
        """
        packed = super().state_dict()
        packed["state"] = {
            index: {
                key: states.decoded(value) if isinstance(value, CompressedWeight) else value
                for key, value in state.items()
            }
            for index, state in packed["state"].items()
            if state
        }
        packed[_FORMAT] = {"version": 1}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state dict, of this class or of the factory's optimizer.

        Args:
            state_dict: What `state_dict` returned; its tensors are copied.

        Raises:
            ValueError: If it is one of other groups or parameters.
        """
        super().load_state_dict(state_dict)
        self._link_groups()
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        leaves = [leaf for group in self.param_groups for leaf in group["params"]]
        for index, leaf in zip(saved, leaves, strict=True):
            slot = self._slots[leaf]
            state = self.state.get(leaf)
            if state is not None:
                given = state_dict["state"].get(index, {})
                for key, value in given.items():
                    if isinstance(value, torch.Tensor):
                        exact = value if _FORMAT in state_dict else state[key]
                        state[key] = exact.detach().to(state[key].device, copy=True)
            slot.use_state(state)
            slot.upgrade()
            if slot.state:
                self.state[leaf] = slot.state
            if self._compress_states:
                states.compress(slot.state)

    def __getstate__(self) -> dict[str, Any]:
        """Refuses to be copied: hooks would be left behind.

        Raises:
            TypeError: Always.
        """
        message = (
            "InBackward cannot be pickled or copied: its hooks belong to the parameters of its "
            "model. Save state_dict(), and load it into an InBackward of the other model"
        )
        raise TypeError(message)

    # --- clipping -------------------------------------------------------------------------------

    def clip_grad_value_(self, clip_value: float | None) -> None:
        """Clips the elements of every gradient from now on, as torch's function of that name does.

        Args:
            clip_value: The largest absolute value; None for no clipping.

        Raises:
            ValueError: If it is negative or NaN.
        """
        if clip_value is not None and not float(clip_value) >= 0:
            message = f"clip_value must not be negative, not {clip_value!r}"
            raise ValueError(message)
        self._clip_value = None if clip_value is None else float(clip_value)

    @contextmanager
    def clip_in_two_passes(
        self, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
    ) -> Iterator[GradientNorm]:
        """Clips by the norm of all gradients, at the price of a second pass.

            with opt.clip_in_two_passes(max_norm=1.0) as norm:
                loss_of(batch).backward()      # measures; nothing is updated
            loss_of(batch).backward()          # updates with clipped gradients
            opt.step()                         # ends both

        Both passes must compute the same: with dropout, run the first one inside of
        `torch.random.fork_rng()`. With `accumulate_steps`, each has that many backward passes.

        Args:
            max_norm: The largest norm that is left as it is.
            norm_type: Its order; may be `inf`.
            error_if_nonfinite: Whether to raise if the norm is infinite or NaN.

        Yields:
            The norm; its `total` is there when the block has ended.

        Raises:
            RuntimeError: If gradients are there already, or the norm is not finite and
                `error_if_nonfinite` is set.
        """
        if self._measuring or any(slot.fired for slot in self._slots.values()):
            message = "a step is under way: call step() or zero_grad() before measuring gradients"
            raise RuntimeError(message)
        norm = GradientNorm(max_norm, norm_type)
        self._measured, self._measuring = norm, True
        try:
            yield norm
            self._finish_all()
            norm.finish(
                (slot.name for slot in self._slots.values()), error_if_nonfinite=error_if_nonfinite
            )
        except BaseException:
            self._measured = None
            raise
        finally:
            self._measuring = False
            for leaf, slot in self._slots.items():
                leaf.grad = None
                slot.fired = 0

    def remove(self) -> None:
        """Takes the hooks away: the model can be trained in another way, and this is over."""
        self._finalizer()
        for leaf in self._slots:
            if isinstance(leaf.grad, SpentGradient):
                leaf.grad = None

    # --- what happens to a gradient ---------------------------------------------------------------

    def _gradient_ready(self, leaf: torch.Tensor) -> None:
        # Only here: a Trainer may be imported after the optimizer was made.
        teach_trainer(InBackward)
        slot = self._slots[leaf]
        slot.fired += 1
        if slot.fired < self.accumulate_steps:
            return
        if self._parallel is None:
            self._use(slot)
        else:
            for next_slot in self._parallel.ready(slot):
                self._use(next_slot)

    def _finish_all(self) -> None:
        """Uses every gradient that is left, and starts anew."""
        for slot in self._slots.values():
            if slot.fired == 0 and _real_gradient(slot.leaf) is not None:
                self._arm(slot)
        for slot in list(self._slots.values()) if self._parallel is None else self._parallel.rest():
            self._use(slot)
        for leaf, slot in self._slots.items():
            leaf.grad = None
            slot.fired = 0

    def _use(self, slot: Slot) -> None:
        """Updates a parameter with its gradient, if it has one, and frees that."""
        leaf = slot.leaf
        gradient = _real_gradient(leaf)
        if gradient is not None:
            leaf.grad = None
            gradient = gradient.detach()
        with torch.no_grad():
            if self._parallel is not None:
                gradient = self._parallel.average(slot, gradient)
            if gradient is None:
                return
            if self._measuring and self._measured is not None:
                self._measured.add(slot.name, gradient)
            else:
                self._update(slot, gradient)
        leaf.grad = SpentGradient(leaf, slot.name)

    def _update(self, slot: Slot, gradient: torch.Tensor) -> None:
        if self._measured is not None:
            self._measured.clip_(gradient)
        if self._clip_value is not None:
            gradient.clamp_(min=-self._clip_value, max=self._clip_value)
        slot.use_state(self.state.get(slot.leaf))
        try:
            slot.update(gradient, compress_states=self._compress_states)
        finally:
            if slot.state:
                self.state[slot.leaf] = slot.state

    # --- hooks ------------------------------------------------------------------------------------

    def _new_slot(self, leaf: torch.Tensor, names: dict[nn.Parameter, str]) -> Slot:
        if not isinstance(leaf, nn.Parameter):
            message = f"params must be parameters, not {type(leaf).__qualname__}"
            raise TypeError(message)
        name = names.get(leaf)
        if name is None or not leaf.requires_grad:
            what = "not in the model" if name is None else f"frozen ({name!r})"
            message = f"a parameter to be trained is {what}"
            raise ValueError(message)
        check_parameter(name, leaf)
        return Slot(name, leaf, self._factory)

    def _adopt(self, slots: list[Slot]) -> None:
        for slot in slots:
            self._slots[slot.leaf] = slot
            self._arm(slot)
        if self._parallel is not None:
            self._parallel.add(slots)

    def _arm(self, slot: Slot) -> None:
        """Registers the hook of a parameter, again if need be."""
        leaf = slot.leaf
        for hook in list((leaf._post_accumulate_grad_hooks or {}).values()):
            other = hook.optimizer() if isinstance(hook, _Hook) else None
            if other is not None and other is not self:
                # Both would update the parameter. The older one says so when it is used.
                other.remove()
        handle = self._handles.pop(leaf, None)
        if handle is not None:
            handle.remove()
        self._handles[leaf] = leaf.register_post_accumulate_grad_hook(_Hook(self))
        # Where torch has lost the hooks, it still has their dictionary, and adding to that is in
        # vain until it is set again.
        leaf._post_accumulate_grad_hooks = leaf._post_accumulate_grad_hooks

    def _link_groups(self) -> None:
        for group in self.param_groups:
            for leaf in group["params"]:
                self._slots[leaf].group = group

    def _check_alive(self) -> None:
        if not self._finalizer.alive:
            message = (
                "this InBackward trains nothing any more: remove() was called, or another "
                "InBackward was made for the same parameters"
            )
            raise RuntimeError(message)

    def _check_others(self) -> None:
        """Raises an error for a parameter that would silently stay as it is."""
        for name, parameter in self._model.named_parameters():
            if (
                parameter.requires_grad
                and parameter.grad is not None
                and parameter not in self._slots
            ):
                message = (
                    f"parameter {name!r} has a gradient and is not trained: it has been added, "
                    "exchanged or thawed since InBackward was made. Make a new InBackward, or call "
                    'add_param_group({"params": [parameter]})'
                )
                raise RuntimeError(message)


def _real_gradient(leaf: torch.Tensor) -> torch.Tensor | None:
    gradient = leaf.grad
    return None if isinstance(gradient, SpentGradient) else gradient


def _remove_all(handles: dict[torch.Tensor, RemovableHandle]) -> None:
    for handle in handles.values():
        handle.remove()
    handles.clear()


def _group_for(options: Options, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The group with these options, a new one if there is none."""
    for group in groups:
        if group.keys() - {"params"} == options.keys() and all(
            _same(group[key], value) for key, value in options.items()
        ):
            return group
    groups.append({"params": [], **options})
    return groups[-1]


def _same(one: object, other: object) -> bool:
    if one is other:
        return True
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return False
    return type(one) is type(other) and one == other
