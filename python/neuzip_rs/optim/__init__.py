"""Training during backward: each gradient is used as soon as it is there, and then freed.

    opt = nz.optim.InBackward(model, lambda params: torch.optim.AdamW(params, lr=1e-3))
    loss.backward(); opt.step(); opt.zero_grad()        # the usual loop

Made for models with compressed weights (`nz.nn.compress_`), whose weights are decoded, updated and
encoded one at a time; plain models work as well. Needs torch, which is imported with this module.
"""

from neuzip_rs.optim.in_backward import InBackward
from neuzip_rs.optim.two_passes import GradientNorm

__all__ = ["GradientNorm", "InBackward"]
