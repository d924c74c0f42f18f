"""What made a number: command, packages, devices, commit, and a hash of the code."""

import hashlib
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata

import jax

from cellseg_jax.cli import machine
from cellseg_jax.models import onednn

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "ml_collections",
            "numpy", "scipy", "scikit-image", "tifffile")


def environment() -> dict:
    """What this process runs with: command, Python, platform, packages, code and devices."""
    return {
        "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "code": code_hash(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "arithmetic": arithmetic(),
    }


def arithmetic() -> dict:
    """What decides in which order a CPU adds, and so the last bits of a result."""
    if jax.default_backend() != "cpu":
        return {"jaxlib": metadata.version("jaxlib")}
    return {"jaxlib": metadata.version("jaxlib"), "cores": machine.cores(),
            "convolutions": onednn.status().text}


def commit() -> str:
    """The commit of this code, "+" when the tree has changes; "" outside a checkout."""
    def run(*args):
        return subprocess.run(["git", "-C", str(PACKAGE), *args], capture_output=True, text=True)

    try:
        head = run("rev-parse", "HEAD")
        dirty = run("status", "--porcelain", "--untracked-files=no")
    except OSError:
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


# The rooms that decide a number: results of other code are not taken for this code's.
NUMBERS = ("augment", "classical", "config", "crops", "data", "inference", "interop", "losses",
           "metrics", "models", "normalize", "optim", "pruning", "random_bits", "step", "targets",
           "train")


def number_sources(package=PACKAGE) -> list[pathlib.Path]:
    """The modules that decide a number: those of the rooms NUMBERS, without their pages."""
    sources = sorted(path for kind in ("py", "cc", "h") for path in package.rglob(f"*.{kind}"))
    return [path for path in sources if path.name != "page.py"
            and path.relative_to(package).parts[0].removesuffix(".py") in NUMBERS]


def code_hash(package=PACKAGE) -> str:
    """A hash of the source of all modules that decide a number."""
    text = b"".join(path.read_bytes() for path in number_sources(package))
    return hashlib.blake2b(text, digest_size=16).hexdigest()
