"""Checkpoints of one run: the last and the best. The only orbax code.

A checkpoint is a directory `checkpoints/<step>`, written under another name and renamed when it is
whole and has its checksums, so that a kill leaves either a whole checkpoint or a temporary that the
next start removes. Checkpoints of before have no checksums; they are read as they are.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from cellseg_jax.errors import InputError
from cellseg_jax.files import checksums, write_atomic
from cellseg_jax.files.checksums import Damaged
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import CONFIG_FILE

METADATA = "_CHECKPOINT_METADATA"  # of orbax, with what is kept beside the state
SCORE = pathlib.Path("metrics", "metrics")  # where orbax keeps scores, for programs that use it
TEMPORARY = ".saving"  # appended to the name of a checkpoint that is not whole yet
DELETED = ".deleted"  # or not any more
LEFT = (TEMPORARY[1:], DELETED[1:], "orbax-checkpoint-tmp")  # what a kill leaves, after a number
# Leaves of the state in checkpoints of before. Now they are in the judgement beside the state.
JUDGEMENT_LEAVES = ("best", "waited", "previous_loss", "plateau")
NETWORK = ("params", "batch_stats", "ema")  # fields of the state that are read without the others
# Errors of the machine, not of a file, as orbax and its storage library word them.
MACHINE_ERRORS = re.compile(r"RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|OS error|Errno|"
                            r"[Oo]ut of memory|Cannot allocate|Too many open files")


class Checkpoints:
    """The checkpoints of a run that is being trained, opened for writing by its trainer alone.

    Args:
      check: called before a save, before it gets its name, and where a checkpoint cannot be
        read; raises where another process took the run over.
    """

    def __init__(self, directory, check: Callable[[], None] = lambda: None):
        self.directory = pathlib.Path(directory).absolute()
        self._writes = jax.process_index() == 0  # what all processes do once
        if self._writes:
            self.directory.mkdir(exist_ok=True)
            for left in self.directory.glob("[0-9]*.*"):
                if left.name.partition(".")[2].startswith(LEFT):
                    shutil.rmtree(left)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "save")
        self._saving, self._check = None, check

    def save(self, state, step: int, score: float | None = None, judgement=None) -> None:
        """Save in the background, once the save before has ended.

        Between processes orbax's barriers have one name for all runs: there a save of one run has
        to end (`wait`) before that of another begins.

        Args:
          state: TrainState. Its `values` come from the config at every start and are left out:
            which of them are in the program depends on the other runs in it.
          score: larger is better; it marks a new best checkpoint.
          judgement: dict of what JSON can hold, kept in the same checkpoint.
        Raises: FileExistsError for a step that is saved already: callers evaluate first, then save
          once. What went wrong with the save before, or of `check`.
        """
        self.wait()
        self._check()
        path = self.directory / str(step)
        if path.exists():
            raise FileExistsError(f"{path} is there already")
        temporary = path.with_name(path.name + TEMPORARY)
        score = None if score is None else float(score)
        with self._naming():  # it returns when the state is copied off the devices
            response = ocp.save_checkpointables_async(
                temporary, {"state": state.replace(values={})},
                custom_metadata={"judgement": judgement or {}, "score": score,
                                 "shapes": _shape_table(state)})
        self._saving = self._thread.submit(self._complete, response, temporary, path, score)

    def _complete(self, response, temporary: pathlib.Path, path: pathlib.Path, score) -> None:
        """The end of a save: checksums, the name, and the checkpoints that are not needed any more.
        """
        response.result()  # without this call orbax keeps a thread and three descriptors
        if not self._writes:
            return
        checksums.write(temporary)
        if score is not None:
            (temporary / SCORE).parent.mkdir()
            write_atomic(temporary / SCORE, json.dumps({"score": score}))
        self._check()
        temporary.rename(path)
        for step in set(self.steps()) - set(saved_steps(self.directory).values()):
            deleted = self.directory / f"{step}{DELETED}"
            (self.directory / str(step)).rename(deleted)
            shutil.rmtree(deleted)

    def steps(self) -> list[int]:
        """Saved steps, newest first."""
        return _steps(self.directory)

    def restore_latest(self, state, log: Callable[[str], None]) -> tuple | None:
        """(state, judgement) of the newest checkpoint that is not damaged, or None without one.

        A damaged checkpoint is moved aside, reported through `log`, and the one before is read.

        Args:
          state: TrainState of jax.ShapeDtypeStruct with shardings.
        Raises: InputError if a checkpoint holds the state of another program: other leaves, or
          leaves of other shapes; or if it cannot be read and nothing proves that it is damaged.
        """
        self.wait()  # a save under way is not among the steps yet
        state, steps = state.replace(values={}), self.steps()
        for step, before in zip(steps, [*steps, 0][1:], strict=True):
            try:
                return _read(self.directory / str(step), lambda path: _restored(path, state))
            except Damaged as error:
                self._check()
                self._set_aside(step, f"{error}; moved to {{}}, going on from step {before}", log)
            except InputError:
                self._check()  # who took the folder over may have removed the checkpoint,
                if (self.directory / str(step)).is_dir():
                    raise
                return self.restore_latest(state, log)  # or who had it replaced it
        return None

    def _set_aside(self, step: int, text: str, log: Callable[[str], None]) -> None:
        """Move a damaged checkpoint out of the way of those before it."""
        aside = self.directory.parent / f"damaged_checkpoint_{step}"
        if self._writes:
            shutil.rmtree(aside, ignore_errors=True)
            (self.directory / str(step)).rename(aside)
        log(text.format(aside.name))

    def wait(self) -> None:
        """Wait for the save under way; on every process, until all see the checkpoint."""
        if self._saving:
            self._end_save()
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("checkpoint")

    def _end_save(self) -> None:
        saving, self._saving = self._saving, None
        if saving:
            with self._naming():
                saving.result()

    @contextlib.contextmanager
    def _naming(self):
        """Errors of the machine in a save are OSErrors that name the folder, and what is safe."""
        try:
            yield
        except Exception as error:  # orbax raises many kinds
            found = re.search(r"os_error_code='(\d+)'", str(error))
            number = int(found[1]) if found else getattr(error, "errno", None)
            if number is None:
                raise
            steps = self.steps()
            safe = f"step {steps[0]} is saved whole" if steps else "no step is saved yet"
            raise OSError(number, f"cannot save ({os.strerror(number)}); {safe}",
                          str(self.directory)) from error

    def close(self) -> None:
        """Wait for the save under way and close."""
        try:
            self._end_save()
        finally:
            self._thread.shutdown()


def saved_steps(directory) -> dict[str, int]:
    """{"last": step, "best": step} of a finished or running run; {} without checkpoints.

    Raises: InputError where what is there cannot be read.
    """
    directory, scores = pathlib.Path(directory).absolute(), {}
    for step in _steps(directory):
        try:
            scores[step] = _read(directory / str(step), _score, (METADATA,))
        except Damaged as error:
            scores[step] = None
            terminal.log(f"{error}; its score is not known")
        except InputError:
            if (directory / str(step)).is_dir():
                raise
            # The process that trains the run has just replaced it.
    if not scores:
        return {}
    last = max(scores)
    scored = [step for step in sorted(scores) if scores[step] is not None]
    return {"last": last, "best": max(scored, key=scores.get, default=last)}


def load(directory, step: int, part: dict) -> dict:
    """A part of a saved state, e.g. {"params": abstract, "batch_stats": abstract}, any devices.

    Args:
      part: {field of TrainState: tree of jax.ShapeDtypeStruct with shardings}.
    Raises: Damaged; InputError where it cannot be read.
    """
    return _read(pathlib.Path(directory).absolute() / str(step), lambda path: _part(path, part))


def load_first(directory, steps, part) -> tuple[int, dict]:
    """(step, load(...)) of the first of `steps` that is not damaged.

    Args:
      part: as `load` takes it, or a function that makes it of the `shapes` of the checkpoint.
    Raises: InputError if all are, or one cannot be read.
    """
    directory, damage = pathlib.Path(directory).absolute(), ""
    make = part if callable(part) else lambda _: part
    for step in dict.fromkeys(steps):
        try:
            found = _read(directory / str(step), lambda path: _part(path, make(_shapes(path))))
        except Damaged as error:
            damage = str(error)
            terminal.log(f"{damage}; step {step} is not used")
        else:
            if damage:
                terminal.log(f"{directory}: step {step} is used instead")
            return step, found
    raise InputError(f"{damage}, and no other checkpoint is whole; train again with another "
                     "--workdir")


def _steps(directory: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a directory, newest first; none where it does not exist."""
    if not directory.is_dir():
        return []
    return sorted((int(path.name) for path in directory.iterdir() if path.name.isdecimal()),
                  reverse=True)


def _read(path: pathlib.Path, reader: Callable, names=None):
    """reader(path) of a checkpoint whose files are what was written.

    Args:
      names: of the files that it reads, None for all.
    Raises: Damaged where that is proven: by checksums or, in checkpoints of before, by an error of
      `reader` that is none of the machine. InputError where it could not be read for another
      reason, such as permissions, descriptors or memory.
    """
    has_checksums = True
    try:
        has_checksums = checksums.check(path, names)
        if not has_checksums and "score" in _beside(path):
            raise Damaged(f"{path / checksums.FILE}: is missing")
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # orbax raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if not has_checksums and _proves_damage(path, error):
            raise Damaged(f"{path}: is damaged ({reason})") from error
        raise InputError(f"{path}: cannot be read ({reason}); it was left as it is: start again "
                         "when this is mended") from error


def _proves_damage(path: pathlib.Path, error: Exception) -> bool:
    """Whether an error of reading a checkpoint without checksums is one of its files."""
    if isinstance(error, MemoryError) or MACHINE_ERRORS.search(str(error)):
        return isinstance(error, FileNotFoundError) and path.is_dir()
    try:
        for file in path.rglob("*"):
            if file.is_file():
                checksums.measured(file)
    except OSError:
        return False
    return path.is_dir()


def _beside(path: pathlib.Path) -> dict:
    """What is kept beside the state of a checkpoint: its judgement and, now, its score."""
    return json.loads((path / METADATA).read_bytes()).get("custom_metadata") or {}


def _score(path: pathlib.Path) -> float | None:
    """The score of a checkpoint, None where it was not the best when it was saved."""
    beside = _beside(path)
    if "score" in beside or not (path / SCORE).exists():
        return beside.get("score")
    try:
        return json.loads((path / SCORE).read_bytes())["score"]
    except (ValueError, KeyError, TypeError):  # damaged: a best checkpoint's judgement has it too
        return beside.get("judgement", {}).get("best")


def _restored(path: pathlib.Path, state) -> tuple:
    """(state, judgement) of a checkpoint, also of one from before the judgement had its place."""
    try:
        beside = _beside(path)
        if "judgement" in beside:
            wanted = {name: getattr(state, name) for name in NETWORK}
            check_shapes(_shapes(path), wanted, path.parents[1] / CONFIG_FILE)
            return ocp.load_checkpointables(path, {"state": state})["state"], beside["judgement"]
        part = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        saved = _shapes(path)
        part |= abstract({name: saved[name] for name in JUDGEMENT_LEAVES}, state.step.sharding)
        found = _part(path, {k: v for k, v in part.items() if jax.tree.leaves(v)})
    except InputError:
        raise
    except Exception as error:
        wrong = _wrong_structure(path, state)
        if wrong:
            raise InputError(f"{path}: {wrong}; the checkpoint was made by other code, use a new "
                             "workdir") from error
        raise
    judgement = {name: jax.tree.map(lambda x: np.asarray(x).item(), found.pop(name))
                 for name in JUDGEMENT_LEAVES if name in found}
    return state.replace(**found), judgement


def _part(path: pathlib.Path, part: dict) -> dict:
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    with context:
        return ocp.load_checkpointables(path, {"state": part})["state"]


def _shape_table(state) -> dict:
    """{path of an array of the network: [dtype, *shape]}, kept beside the state for `_shapes`."""
    leaves = flatten_dict({name: getattr(state, name) for name in NETWORK}, sep="/")
    return {name: [str(x.dtype), *x.shape] for name, x in leaves.items()}


def _shapes(path: pathlib.Path) -> dict:
    """{field of TrainState: tree of jax.ShapeDtypeStruct} of a saved state.

    Those of `NETWORK`; or all in checkpoints of before, where orbax has to open each array: that
    takes longer than to load the network, and tensorstore never frees 10 kB of each.
    """
    table = _beside(path).get("shapes")
    if table is None:
        saved = ocp.checkpointables_metadata(path).metadata["state"]
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    return unflatten_dict({name: jax.ShapeDtypeStruct(shape, dtype)
                           for name, (dtype, *shape) in table.items()}, sep="/")


def check_shapes(shapes: dict, wanted: dict, source) -> None:
    """InputError where a checkpoint holds another network than the config of its run describes.

    Args:
      shapes: of a saved state, {field: tree}.
      wanted: {field: tree of shapes}; other fields are not compared.
      source: the file that `wanted` follows from.
    """
    wrong = _difference({name: shapes.get(name) for name in wanted}, wanted)
    if wrong:
        raise InputError(f"{source}: describes another network than the checkpoint holds, where "
                         f"{wrong}; the run was made by other code, or the file was changed: "
                         "put it back, or use a new workdir")


def abstract(tree, sharding):
    """Shapes and dtypes of a tree of arrays, to be restored onto `sharding`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _wrong_structure(path: pathlib.Path, state) -> str:
    """What differs between a saved tree and the wanted one: names, shapes; '' if nothing."""
    try:
        saved = ocp.checkpointables_metadata(path).metadata["state"]
    except Exception:  # metadata is damaged too: not a question of structure
        return ""
    return _difference(saved, state)


def _difference(saved, wanted) -> str:
    here = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(wanted)}
    there = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(saved)
             if hasattr(x, "shape") and _name(path[:1]) not in JUDGEMENT_LEAVES}
    for key in sorted(here.keys() | there.keys()) if there else ():
        if here.get(key) != there.get(key):
            return f"{key} has shape {there.get(key)}, expected {here.get(key)}"
    return ""


def _name(path) -> str:
    """a.b.c of the path of a leaf, whether it goes through dicts, tuples or dataclasses."""
    return ".".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
