"""What transformers' Trainer has to be told: there is no norm of gradients that are gone.

It logs the norm of all gradients at every step, also where it does not clip (`max_grad_norm=0`),
and computes it by a call that clips. With gradients that were used and freed that raises. For an
`InBackward` alone, Trainers leave the norm out.
"""

import sys
from functools import wraps
from typing import Any, Final

_MARK: Final = "_neuzip_leaves_out_norms"


def teach_trainer(kind: type) -> None:
    """Lets the Trainer, if it has been imported, leave out the norm.

    Args:
        kind: The optimizer that it leaves it out for.
    """
    trainer: Any = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    known: Any = getattr(trainer, "_get_grad_norm", None)
    if known is None or hasattr(known, _MARK):
        return

    @wraps(known)
    def get_grad_norm(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - transformers'
        # accelerate wraps the optimizer into one of its own.
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, kind):
            return kwargs.get("grad_norm")
        return known(self, *args, **kwargs)

    setattr(get_grad_norm, _MARK, True)
    trainer._get_grad_norm = get_grad_norm
