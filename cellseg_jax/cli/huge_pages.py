"""Large pages for large arrays: a process starts once more with glibc told to ask for them.

XLA allocates what a step works with anew for each step, and the kernel clears it in pages of 4 KiB:
of a step of a small network that was 40 % of the CPU time. glibc asks for pages of 2 MiB if the
environment says so when a process starts, and only then.
"""

import os
import pathlib
import platform
import sys

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Start this command again with the tunable, where it has an effect and is not set already.

    Does nothing in programs that are none of our commands, such as tests and notebooks.
    """
    variables = wanted()
    if variables and is_command():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables)


def wanted() -> dict[str, str]:
    """The environment variable that asks for large pages; {} where it is set or has no effect."""
    before = os.environ.get(VARIABLE, "")
    if TUNABLE in before or not are_offered():
        return {}
    return {VARIABLE: ":".join(filter(None, (before, f"{TUNABLE}=1")))}


def is_command() -> bool:
    """Whether this process is `python -m cellseg_jax...` or `cellseg`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name if spec else pathlib.Path(sys.argv[0]).name
    return name.split(".")[0] in ("cellseg_jax", "cellseg")


def are_offered() -> bool:
    """Whether programs here get large pages if they ask for them, and not otherwise."""
    try:
        return "[madvise]" in KERNEL.read_text() and platform.libc_ver()[0] == "glibc"
    except OSError:
        return False
