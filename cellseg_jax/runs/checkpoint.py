"""Checkpoints of one run: the last and the best. The only orbax code.

A checkpoint is a directory `checkpoints/<step>` that orbax completes with one atomic rename, so a
kill leaves either a whole checkpoint or a temporary that the next start removes.
"""

import logging
import pathlib
import shutil
from collections.abc import Callable

import jax
from orbax.checkpoint import v1 as ocp

from cellseg_jax.errors import InputError

_save = ocp.training.save_decision_policies
_keep = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of a run that is being trained. Only its trainer opens them so."""

    _under_way = None  # the save that this process began last, of whichever run

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

    def save(self, state, step: int, score: float | None = None) -> None:
        """Save in the background; `score`, larger is better, marks a new best.

        `state.values` come from the config at every start and are left out: which of them are in
        the program depends on who else is.

        A second save of a step is refused by orbax: callers evaluate first and save once.
        """
        metrics = None if score is None else {"score": float(score)}
        # Between processes orbax's barriers bear one name for all runs: two saves would meet.
        if jax.process_count() > 1 and Checkpoints._under_way is not None:
            Checkpoints._under_way.result()
        Checkpoints._under_way = self._orbax.save_checkpointables_async(
            step, {"state": state.replace(values={})}, force=True, metrics=metrics)

    def steps(self) -> list[int]:
        """Saved steps, newest first."""
        return sorted((c.step for c in self._orbax.checkpoints), reverse=True)

    def restore_latest(self, state, note: Callable[[str], None]):
        """The newest state that can be read, or None without one.

        A damaged checkpoint is moved aside, said through `note`, and the previous one is used.

        Args:
          state: TrainState of jax.ShapeDtypeStruct with shardings.
        """
        state = state.replace(values={})
        for step in self.steps():
            try:
                return self._orbax.load_checkpointables(step, {"state": state})["state"]
            except Exception as error:  # orbax raises many kinds for damaged files
                wrong = _wrong_structure(self._orbax, step, state)
                if wrong:
                    raise InputError(f"{self.directory / str(step)}: {wrong}; the checkpoint "
                                     "was made by other code, use a new workdir") from error
                aside = self.directory.parent / f"damaged_checkpoint_{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
                reason = str(error).strip().splitlines()[0][:200]
                self._orbax.reload()
                instead = self.steps()[0] if self.steps() else 0
                note(f"checkpoint {step} cannot be read ({reason}); moved to {aside.name}, "
                     f"going on from step {instead}")
        return None

    def wait(self) -> None:
        """Wait for the saves under way."""
        self._orbax.wait()

    def close(self) -> None:
        """Wait for the saves under way, and let go."""
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
    name = lambda path: ".".join(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p))))
                                 for p in path)
    here = {name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(state)}
    there = {name(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(saved)
             if hasattr(x, "shape")}
    for key in sorted(here.keys() | there.keys()) if there else ():
        if here.get(key) != there.get(key):
            return f"{key} has shape {there.get(key)}, expected {here.get(key)}"
    return ""
