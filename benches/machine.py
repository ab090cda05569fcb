"""What a measurement was made on, for the line under every table."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import neuzip_rs


def cpu_name() -> str:
    """Returns the name of the CPU as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe() -> str:
    """Returns one line that names the CPU, its cores and instruction sets, and the versions."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    known = {"avx2": "AVX2", "avx512bw": "AVX-512", "avx512_vbmi2": "VBMI2", "asimd": "NEON"}
    features = [label for flag, label in known.items() if flag in flags]
    parts = [cpu_name(), f"{os.cpu_count()} cores", *features]
    return (
        f"{', '.join(parts)}; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}; "
        f"neuzip_rs {neuzip_rs.__version__}, {neuzip_rs.simd_tier()} tier"
    )
