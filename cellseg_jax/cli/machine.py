"""The processor that this process computes on."""

import os
import pathlib
import platform

import psutil


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(psutil.Process, "cpu_affinity"):
        return len(psutil.Process().cpu_affinity())
    return os.cpu_count() or 1


def processor() -> str:
    """Model and instructions of the CPU, as the system names them."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    words = ("model name", "flags", "Features", "CPU part")  # of x86, and of ARM
    return "\n".join(sorted({line for line in lines if line.startswith(words)}))
