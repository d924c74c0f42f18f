"""Which code made a number: commit, and a hash of the modules that produce numbers."""

import hashlib
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata

import jax

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
    }


def commit() -> str:
    """The commit of this code, "+" when the tree has changes; "" outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parents[1]
    run = lambda *args: subprocess.run(["git", "-C", str(folder), *args],
                                       capture_output=True, text=True)
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
           "metrics", "models", "normalize", "optim", "pruning", "random_words", "step", "targets",
           "train")


def code_hash() -> str:
    """A hash of the source of all modules that produce numbers."""
    package = pathlib.Path(__file__).resolve().parents[1]
    sources = [p for p in sorted(package.rglob("*.py"))
               if p.relative_to(package).parts[0].removesuffix(".py") in NUMBERS]
    text = b"".join(p.read_bytes() for p in sources)
    return hashlib.blake2b(text, digest_size=16).hexdigest()
