"""Checkpoints of one run: the last and the best. The only orbax code.

A checkpoint is a directory `checkpoints/<step>` that orbax completes with one atomic rename, so a
kill leaves either a whole checkpoint or a temporary that the next start removes.
"""

import dataclasses
import logging
import pathlib
import shutil
from collections.abc import Callable

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from cellseg_jax.errors import InputError

_save = ocp.training.save_decision_policies
_keep = ocp.training.preservation_policies
# Leaves of the state in checkpoints of before. Now they are in the judgement beside the state.
JUDGEMENT_LEAVES = ("best", "waited", "previous_loss", "plateau")


class Checkpoints:
    """The checkpoints of a run that is being trained, opened for writing by its trainer alone."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory).absolute()
        self._orbax = ocp.training.Checkpointer(
            self.directory,
            cleanup_tmp_directories=True,
            # The trainer decides; orbax's default policy would skip saves silently.
            save_decision_policy=_save.FixedIntervalPolicy(1),
            preservation_policy=_keep.AnyPreservationPolicy([
                _keep.LatestN(1),
                _keep.BestN(get_metric_fn=lambda m: m["score"], n=1,
                            keep_checkpoints_without_metrics=False),
            ]),
        )

    def save(self, state, step: int, score: float | None = None, judgement=None) -> None:
        """Save in the background.

        Between processes orbax's barriers have one name for all runs: there a save of one run has
        to end (`wait`) before that of another begins.

        Args:
          state: TrainState. Its `values` come from the config at every start and are left out:
            which of them are in the program depends on the other runs in it.
          score: larger is better; it marks a new best checkpoint.
          judgement: dict of what JSON can hold, kept in the same checkpoint.
        Raises: FileExistsError (of orbax) for a step that is saved already: callers evaluate first,
          then save once.
        """
        metrics = None if score is None else {"score": float(score)}
        self._orbax.save_checkpointables_async(
            step, {"state": state.replace(values={})}, force=True, metrics=metrics,
            custom_metadata={"judgement": judgement or {}})

    def steps(self) -> list[int]:
        """Saved steps, newest first."""
        return sorted((c.step for c in self._orbax.checkpoints), reverse=True)

    def restore_latest(self, state, log: Callable[[str], None]) -> tuple | None:
        """(state, judgement) of the newest checkpoint that can be read, or None without one.

        A damaged checkpoint is moved aside, reported through `log`, and the one before is read.

        Args:
          state: TrainState of jax.ShapeDtypeStruct with shardings.
        Raises: InputError if a checkpoint holds the state of another program: other leaves, or
          leaves of other shapes.
        """
        state = state.replace(values={})
        for step in self.steps():
            try:
                return self._restore(step, state)
            except Exception as error:  # orbax raises many kinds for damaged files
                wrong = _wrong_structure(self._orbax, step, state)
                if wrong:
                    raise InputError(f"{self.directory / str(step)}: {wrong}; the checkpoint "
                                     "was made by other code, use a new workdir") from error
                self._set_aside(step, error, log)
        return None

    def _restore(self, step: int, state) -> tuple:
        """(state, judgement) of a checkpoint, also of one from before the judgement had its place.
        """
        metadata = self._orbax.checkpointables_metadata(step)
        if "judgement" in metadata.custom_metadata:
            found = self._orbax.load_checkpointables(step, {"state": state})["state"]
            return found, metadata.custom_metadata["judgement"]
        part = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
        saved = metadata.metadata["state"]
        part |= abstract({name: saved[name] for name in JUDGEMENT_LEAVES}, state.step.sharding)
        found = load(self.directory, step, {k: v for k, v in part.items() if jax.tree.leaves(v)})
        judgement = {name: jax.tree.map(lambda x: np.asarray(x).item(), found.pop(name))
                     for name in JUDGEMENT_LEAVES if name in found}
        return state.replace(**found), judgement

    def _set_aside(self, step: int, error: Exception, log: Callable[[str], None]) -> None:
        """Move a damaged checkpoint out of the way of those before it."""
        aside = self.directory.parent / f"damaged_checkpoint_{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (self.directory / str(step)).rename(aside)
        reason = str(error).strip().splitlines()[0][:200]
        self._orbax.reload()
        before = self.steps()[0] if self.steps() else 0
        log(f"checkpoint {step} cannot be read ({reason}); moved to {aside.name}, going on from "
            f"step {before}")

    def wait(self) -> None:
        """Wait for the saves under way."""
        self._orbax.wait()

    def close(self) -> None:
        """Wait for the saves under way and close."""
        self._orbax.close()


def saved_steps(directory) -> dict[str, int]:
    """{"last": step, "best": step} of a finished or running run; {} without checkpoints."""
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        return {}
    with ocp.training.Checkpointer(directory, cleanup_tmp_directories=False) as orbax:
        found = list(orbax.checkpoints)
    if not found:
        return {}
    last = max(c.step for c in found)
    scored = [c for c in found if c.metrics]
    return {"last": last, "best": max(scored, key=lambda c: c.metrics["score"]).step
            if scored else last}


def load(directory, step: int, part: dict) -> dict:
    """A part of a saved state, e.g. {"params": abstract, "batch_stats": abstract}, any devices.

    Args:
      part: {field of TrainState: tree of jax.ShapeDtypeStruct with shardings}.
    """
    context = ocp.Context()
    context.pytree_options.loading.partial_load = True
    with ocp.training.Checkpointer(
        pathlib.Path(directory).absolute(), context=context, cleanup_tmp_directories=False
    ) as orbax:
        return orbax.load_checkpointables(step, {"state": part})["state"]


def load_first(directory, steps, part: dict) -> tuple[int, dict]:
    """(step, load(...)) of the first of `steps` that can be read.

    Raises: InputError if none can.
    """
    for step in dict.fromkeys(steps):
        try:
            return step, load(directory, step, part)
        except Exception as error:  # orbax raises many kinds for damaged files
            reason = str(error).strip().splitlines()[0][:200]
            logging.warning("%s/%d cannot be read (%s)", directory, step, reason)
    raise InputError(f"{directory}: no checkpoint can be read ({reason}); train again with "
                     "another --workdir")


def shapes(directory, step: int) -> dict:
    """{field of TrainState: tree of jax.ShapeDtypeStruct} of a saved state."""
    with ocp.training.Checkpointer(
        pathlib.Path(directory).absolute(), cleanup_tmp_directories=False
    ) as orbax:
        saved = orbax.checkpointables_metadata(step).metadata["state"]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)


def abstract(tree, sharding):
    """Shapes and dtypes of a tree of arrays, to be restored onto `sharding`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _wrong_structure(orbax, step, state) -> str:
    """What differs between a saved tree and the wanted one: names, shapes; '' if nothing."""
    try:
        saved = orbax.checkpointables_metadata(step).metadata["state"]
    except Exception:  # metadata is damaged too: not a question of structure
        return ""
    here = {_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(state)}
    there = {_name(path): tuple(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(saved)
             if hasattr(x, "shape") and _name(path[:1]) not in JUDGEMENT_LEAVES}
    for key in sorted(here.keys() | there.keys()) if there else ():
        if here.get(key) != there.get(key):
            return f"{key} has shape {there.get(key)}, expected {here.get(key)}"
    return ""


def _name(path) -> str:
    """a.b.c of the path of a leaf, whether it goes through dicts, tuples or dataclasses."""
    return ".".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
