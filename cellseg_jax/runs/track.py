"""--track: the events of runs go to MLflow or Weights & Biases, beside their training.

What is sent is read from the files of a run's folder: each line of metrics.jsonl, the config, the
scores and how it ended. A thread looks at them every few seconds, so that no step waits for a
tracker, and nothing that goes wrong there ends a training. The files stay what counts: at its end a
command sends all that is missing, also what a process before it had no time for.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import threading
from collections.abc import Iterator

from cellseg_jax import config as config_lib
from cellseg_jax.files import read_json, read_jsonl, system_lock, write_atomic
from cellseg_jax.report import terminal
from cellseg_jax.runs.lock import TAKEN
from cellseg_jax.runs.names import CONFIG_FILE, METRICS_LOG, RESULT_FILE, is_run, scores_file
from cellseg_jax.runs.status import run_folders
from cellseg_jax.runs.trackers import About, tracker

INTERVAL = 10.0  # seconds between looks at the files
LOCK_FILE = ".tracker.lock"  # held while a process sends a run: another one would double it
MARK_FILE = ".{}.sent"  # of which times of its files a tracker has all; only saves looking again


@contextlib.contextmanager
def tracking(name: str, project: str, folder, *, root=None, again: bool = False) -> Iterator[None]:
    """Send the runs that this process trains or scores in the block; nothing where `name` is "".

    Args:
      name: of trackers.TRACKERS.
      project: what the tracker files the runs under.
      folder: a run or a study: what was not sent of its runs is sent at the end.
      root: the folder that the names of runs start from; default `folder`.
      again: at the end look at all runs, also at those that are marked as sent.
    Raises: InputError for an unknown tracker, or one that is not installed.
    """
    if not name:
        yield
        return
    folder = pathlib.Path(folder)
    sender = Sender(tracker(name), name, project, pathlib.Path(root or folder))
    thread = threading.Thread(target=sender.keep_sending, daemon=True)
    thread.start()
    try:
        yield
    finally:
        sender.stopped.set()
        thread.join()
        for one in dict.fromkeys([*TAKEN, *_runs_of(folder)]):
            sender.send(one, last=True, again=again)


def _runs_of(folder) -> list[pathlib.Path]:
    """The run that a folder is, or those below it."""
    if is_run(folder):
        return [folder]
    return list(run_folders(folder)) if folder.is_dir() else []


class Sender:
    """Sends runs to one tracker.

    Args:
      make: opens a run by its About, such as trackers.Mlflow.
      name, project, root: as in `tracking`.
    """

    def __init__(self, make, name: str, project: str, root: pathlib.Path):
        self.stopped = threading.Event()
        self.root, self._make, self._name, self._project = root, make, name, project
        self._open, self._sent = {}, {}  # {folder: (run, lock)}, {folder: times of its files}
        self._errors = set()  # that were printed

    def keep_sending(self) -> None:
        """Until `stopped` is set."""
        while not self.stopped.wait(INTERVAL):
            for folder in list(TAKEN):
                self.send(folder)

    def send(self, folder: pathlib.Path, *, last: bool = False, again: bool = False) -> None:
        """Send what is new in a run's folder; after that, `last` or without its lock, close it.

        Args:
          again: also of a run that is marked as sent.
        """
        closing, times = last or not TAKEN.get(folder), _times(folder)
        mark = folder / MARK_FILE.format(self._name)
        marked = not again and mark.is_file() and mark.read_text() == repr(times)
        if not times or (marked or times == self._sent.get(folder)) and folder not in self._open:
            return
        try:
            if folder not in self._open:
                lock = system_lock(folder / LOCK_FILE, wait=False)
                self._open[folder] = (None, lock)
                self._open[folder] = (self._make(about(folder, self._project, self.root)), lock)
            run, _ = self._open[folder]
            failed = _send_files(folder, run)
            self._sent[folder] = times
            if closing:
                run.close(failed)
                write_atomic(mark, repr(times))
        except BlockingIOError:  # another process sends it, and what comes later
            return
        except Exception as error:  # of any kind, such as of a network
            closing, why = True, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if last or why not in self._errors:
                terminal.log(f"--track={self._name}: {folder} is not sent ({why}); "
                             f"{'start the command again' if last else 'tried again later'}")
            self._errors.add(why)
            self._sent.pop(folder, None)
        if closing:
            _, lock = self._open.pop(folder, (None, None))
            if lock is not None:
                os.close(lock)


def about(folder: pathlib.Path, project: str, root: pathlib.Path) -> About:
    """What a tracker shows of a run; its id follows from its folder and what it computes."""
    config, folder = read_json(folder / CONFIG_FILE), folder.resolve()
    name = os.path.relpath(folder, root.resolve())
    text = f"{folder} {config_lib.identity(config)}"
    return About(hashlib.blake2b(text.encode(), digest_size=8).hexdigest(), name,
                 os.path.dirname(name), project, config_lib.flatten(config))


def _send_files(folder, run) -> bool | None:
    """All that the files have; whether the run became non-finite, None where it has not ended."""
    for line in read_jsonl(folder / METRICS_LOG, []):
        if values := _numbers(line):
            run.log(line["step"], values)
    result = read_json(folder / RESULT_FILE, {})
    if not result:
        return None
    scores = _numbers(read_json(scores_file(folder), {}).get("metrics", {}))
    if scores:
        run.score(result["step"], {f"test_{key}": value for key, value in scores.items()})
    return result["status"] == "non-finite"


def _numbers(line: dict) -> dict[str, float]:
    """The finite numbers of a line but for its step."""
    return {key: float(value) for key, value in line.items() if key != "step"
            and isinstance(value, int | float) and not isinstance(value, bool)
            and math.isfinite(value)}


def _times(folder) -> tuple:
    """When the files that are sent were written; () where there is no run."""
    files = (folder / METRICS_LOG, folder / RESULT_FILE, scores_file(folder))
    if not is_run(folder):
        return ()
    return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
