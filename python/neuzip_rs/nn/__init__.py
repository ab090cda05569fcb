"""Networks whose weights stay compressed in memory, and run and train as they are.

    nz.nn.compress_(model)          # in place; every module keeps its type
    loss = model(inputs).sum()      # each operator decodes its own weight, bit for bit
    nz.nn.decompress_(model)        # the very bits that were compressed

Needs torch, which is imported with this module and not with `neuzip_rs`.
"""

from neuzip_rs.nn import lazy as _lazy  # noqa: F401  # registers its operators
from neuzip_rs.nn.compress import compress_, decompress_
from neuzip_rs.nn.report import MemoryReport, TensorMemory, memory_report
from neuzip_rs.nn.scratch import free_cache
from neuzip_rs.nn.weight import CompressedWeight

__all__ = [
    "CompressedWeight",
    "MemoryReport",
    "TensorMemory",
    "compress_",
    "decompress_",
    "free_cache",
    "memory_report",
]
