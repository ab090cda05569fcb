"""What a measurement was made on, for the line under every table."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import neuzip_rs


def cpu_name() -> str:
    """Returns the name of the CPU as the system gives it."""
    lines = _read("/proc/cpuinfo").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Returns the CPU seconds that all programs have used, with stolen ones; None if unknown."""
    fields = _read("/proc/stat").partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def describe() -> str:
    """Returns one line that names the CPU, its cores and instruction sets, and the versions."""
    return (
        f"{', '.join([cpu_name(), f'{os.cpu_count()} cores', *_features()])}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}; "
        f"neuzip_rs {neuzip_rs.__version__}, {neuzip_rs.simd_tier()} tier"
    )


def facts() -> dict[str, str]:
    """Returns everything about the machine that speeds depend on, in words."""
    return {
        "CPU": ", ".join([cpu_name(), *_cpu_numbers(), *_features()]),
        "cores": str(cores()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "transparent huge pages": _huge_pages(),
        "C library": " ".join(platform.libc_ver()).strip() or "unknown",
        "Python": platform.python_version(),
        "neuzip_rs": f"{neuzip_rs.__version__}, {neuzip_rs.simd_tier()} kernels",
    }


def _cpu_numbers() -> list[str]:
    """Family and model: names of virtual machines say little."""
    lines = _read("/proc/cpuinfo").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    if "cpu family" not in fields or "model" not in fields:
        return []
    cache = [f"{fields['cache size']} L2"] if "cache size" in fields else []
    return [f"family {fields['cpu family']} model {fields['model']}", *cache]


def _features() -> list[str]:
    flags = set(_read("/proc/cpuinfo").split())
    known = {
        "avx2": "AVX2",
        "avx512bw": "AVX-512",
        "avx512vbmi": "VBMI",
        "avx512_vbmi2": "VBMI2",
        "asimd": "NEON",
    }
    return list(dict.fromkeys(label for flag, label in known.items() if flag in flags))


def _memory() -> str:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return "unknown"
    return f"{pages * size / (1 << 30):.1f} GiB"


def _huge_pages() -> str:
    """The choice in brackets of "always [madvise] never"."""
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
