"""The folder of one run: who may write, what it was started with, and its deterministic log."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import platform
import shlex
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata

import jax

from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "ml_collections",
            "numpy", "scipy", "scikit-image", "tifffile")


LOGS = ("metrics.jsonl", "timing.jsonl", "gradients.jsonl")
HEARTBEAT, HEARTBEAT_LOST = 20.0, 90.0  # seconds


class InUse(InputError):
    """Another process writes into the folder."""


def environment_file(path) -> pathlib.Path:
    """Where a run's folder says what made it; there from its first step on."""
    return pathlib.Path(path) / "environment.json"


def write_atomic(path, text: str | bytes) -> None:
    """The whole file or nothing: a kill leaves the old content."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class RunDir:
    """One run's folder, opened for writing; `close` gives it back.

    Opening compares config and data with what the folder was made with and refuses another run.
    With `writer=False` (the other processes of a multi-process run) nothing is written.
    """

    def __init__(self, path, config, fingerprint: str, *, writer: bool = True):
        self.path = pathlib.Path(path)
        self.writer = writer
        self.extended = ""  # what was made longer, in words
        self._lock = Lock(path) if writer else contextlib.ExitStack()
        try:
            self._compare(config, fingerprint)
        except InputError:
            self.close()
            raise
        if writer:
            write_atomic(self.path / "config.json", config_lib.to_json(config))

    def _compare(self, config, fingerprint):
        if not (self.path / "config.json").exists():
            ignored = (".lock", ".tmp")  # a kill may leave half of a first file
            strangers = [p.name for p in self.path.glob("*") if not p.name.endswith(ignored)]
            if strangers and self.writer:
                raise InputError(f"--workdir: {self.path} holds other files ({strangers[0]} ...) "
                                 "and no run; choose an empty or new folder")
            return
        if not environment_file(self.path).exists():
            return  # bad input ended it before its first step: it can be mended and started again
        self.extended = check_continues(self.path, config)
        check_same_data(self.path, fingerprint)

    def write_environment(self, program: dict, fingerprint: str) -> None:
        """environment.json: all that is needed to say where the numbers come from."""
        if not self.writer:
            return
        devices = jax.devices()
        record = {
            "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "commit": commit(),
            "code": code_hash(),
            "devices": [f"{d.platform} {d.device_kind}" for d in devices],
            "processes": jax.process_count(),
            "program": program,
            "data_fingerprint": fingerprint,
        }
        write_atomic(environment_file(self.path), json.dumps(record, indent=1))

    def cut_logs(self, step: int) -> None:
        """Forget logged lines after `step`, whole or half written: they will be written again."""
        for name in LOGS if self.writer else ():
            path = self.path / name
            if path.exists():
                lines = [s for s in read_jsonl(path) if s["step"] <= step]
                write_atomic(path, "".join(json.dumps(s) + "\n" for s in lines))

    def log(self, name: str, line: dict) -> None:
        """Append one line to one of LOGS; all but timing.jsonl hold deterministic values only."""
        if self.writer:
            with open(self.path / name, "a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint of this step must not outlive its line

    def close(self) -> None:
        """Let others write."""
        self._lock.close()


class Lock:
    """The exclusive right to write into a run's folder, until `close`.

    `flock` decides on one host. Between hosts that share a file system without it, the name of
    the holder and a heartbeat do: a holder on another host that was alive HEARTBEAT_LOST seconds
    ago still has the folder.

    Raises: InputError if the folder cannot be written; InUse, which names the process that has
      the right.
    """

    def __init__(self, path):
        path = pathlib.Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = open(path / ".lock", "a+")
        except OSError as error:
            raise InputError(f"--workdir: cannot write to {path} ({error.strerror}); "
                             "choose another folder with --workdir=DIR") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        self._file.seek(0)
        holder = self._file.read().strip()
        here = f" on {socket.gethostname()}"
        silent = time.time() - os.stat(path / ".lock").st_mtime
        if not free or holder and not holder.endswith(here) and silent < HEARTBEAT_LOST:
            self._file.close()
            raise InUse(f"--workdir: {path} is in use by {holder or 'another process'}; wait for "
                        "it, or choose another folder with --workdir=DIR")
        self._write(f"pid {os.getpid()}{here}")
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _write(self, text):
        self._file.truncate(0)
        self._file.write(text)
        self._file.flush()

    def _beat(self):
        while not self._closed.wait(HEARTBEAT):
            with contextlib.suppress(OSError, ValueError):  # the folder is gone, or just closed
                os.utime(self._file.fileno())

    def close(self) -> None:
        """Let others write."""
        self._closed.set()
        if not self._file.closed:
            self._write("")
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_config(path):
    """The config of a run; InputError if there is no run."""
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        raise InputError(f"--workdir: no run in {path} (config.json is missing); "
                         "train one with python -m cellseg_jax.main --config=FILE")
    return config_lib.from_json(json.dumps(read_json(file)))


def read_json(path) -> dict:
    """A JSON file of a run; InputError where it is damaged."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({error}); restore it, or use another "
                         "--workdir") from error


def changes(path, config) -> dict:
    """{key: (value of the run, value now)} of all that decides what a run computes."""
    return {k: v for k, v in config_lib.diff(read_config(path), config).items()
            if not k.startswith(config_lib.FREE_KEYS)}


def check_same_config(path, config) -> None:
    """InputError with the difference, if the run was made with another config."""
    changed = changes(path, config)
    if changed:
        shown = "; ".join(f"{k} was {a!r}, is {b!r}" for k, (a, b) in changed.items())
        raise InputError(f"--workdir: {path} holds a run of another config: {shown}; use the old "
                         "values or another --workdir")


def check_continues(path, config) -> str:
    """What is made longer, in words, "" if nothing; InputError if it is a run of another config."""
    changed = changes(path, config)
    length = "train.steps" if config.train.steps else "train.epochs"
    before, now = changed.get(length, (0, 0))
    if set(changed) != {length} or not now > before > 0:
        check_same_config(path, config)
        return ""
    extended = f"extended: {length} {before} -> {now}"
    if config.optimizer.schedule != "constant":
        extended += f"; the {config.optimizer.schedule} schedule spans the new length"
    return extended


def check_same_data(path, fingerprint: str) -> None:
    """InputError if the run was trained on other data."""
    file = environment_file(path)
    before = read_json(file).get("data_fingerprint") if file.exists() else fingerprint
    if before != fingerprint:
        raise InputError(f"--workdir: {path} was trained on other data (fingerprint "
                         f"{before[:12]}, now {fingerprint[:12]}); use the old data or another "
                         "--workdir")


def read_jsonl(path) -> list[dict]:
    """The whole lines of a log; a last line cut by a kill is left out."""
    lines = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def commit() -> str:
    """The commit of this code, "+" when the tree has changes; "" outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parent
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


# The modules that decide a number: results of other code are not taken for this code's.
NUMBERS = ("models", "classical", "step", "optim", "losses", "augment", "targets", "normalize",
           "tiles", "windows", "data", "metrics", "predictor", "evaluate", "recipe", "feed",
           "weights", "sparsity", "interop", "derived", "population", "member")


def code_hash() -> str:
    """A hash of the source of all modules that produce numbers."""
    package = pathlib.Path(__file__).resolve().parent
    sources = [p for p in sorted(package.rglob("*.py"))
               if p.relative_to(package).parts[0].removesuffix(".py") in NUMBERS]
    text = b"".join(p.read_bytes() for p in sources)
    return hashlib.blake2b(text, digest_size=16).hexdigest()
