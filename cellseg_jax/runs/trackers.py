"""MLflow and Weights & Biases as `track` uses them: a run that takes values, each of them once.

Where they keep runs is for their own environment variables to say, such as MLFLOW_TRACKING_URI,
WANDB_MODE=offline and WANDB_DIR.
"""

import importlib
import logging
import os
import pathlib
import shutil
import time
from typing import NamedTuple

from cellseg_jax.errors import InputError, pick

PARAMS_AT_ONCE = 100  # that MLflow takes


class About(NamedTuple):
    """What a tracker shows of a run."""

    id: str  # the same for all processes that train it
    name: str
    group: str  # the row of a study
    project: str
    config: dict  # {dotted key: value}


class Mlflow:
    """One run in MLflow, found again by its tag; a value that it has at a step is not sent again.

    So nothing is doubled, whatever ended the process that sent it.
    """

    TAG = "cellseg_jax_run"

    def __init__(self, about: About):
        import mlflow  # of the extra `mlflow`

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client, self._entities, self._known = mlflow.MlflowClient(), mlflow.entities, {}
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or about.project)
        found = self._client.search_runs([experiment], f"tags.{self.TAG} = '{about.id}'")
        run = found[0] if found else self._client.create_run(
            experiment, run_name=about.name, tags={self.TAG: about.id, "row": about.group})
        self._id = run.info.run_id
        new = [self._entities.Param(key, str(value)) for key, value in about.config.items()
               if key not in run.data.params]
        for first in range(0, len(new), PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=new[first : first + PARAMS_AT_ONCE])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        try:
            return found.experiment_id if found else self._client.create_experiment(name)
        except Exception:
            found = self._client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
            return found.experiment_id

    def log(self, step: int, values: dict[str, float]) -> None:
        """The values of a step."""
        for key in values.keys() - self._known.keys():
            history = self._client.get_metric_history(self._id, key)
            self._known[key] = {(one.step, one.value) for one in history}
        new = {key: value for key, value in values.items() if (step, value) not in self._known[key]}
        if new:
            now = round(1000 * time.time())
            self._client.log_batch(self._id, metrics=[
                self._entities.Metric(key, value, now, step) for key, value in new.items()])
        for key, value in new.items():
            self._known[key].add((step, value))

    def score(self, step: int, values: dict[str, float]) -> None:
        """Scores after the last step."""
        self.log(step, values)

    def close(self, failed: bool | None) -> None:
        """No more values for now; `failed` is whether the run became non-finite, None unended."""
        if failed is not None:
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class Wandb:
    """One run in Weights & Biases, which goes on by its id after the last step that it has.

    What was written offline cannot be gone on with: then the whole run is written anew, and what
    an earlier process left of it in the same folder is removed.
    """

    def __init__(self, about: About):
        import wandb  # of the extra `wandb`

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or about.project, name=about.name,
            group=about.group or None, id=about.id, resume="allow", reinit="create_new",
            config=about.config, settings=wandb.Settings(silent=True, console="off"))
        self._next = self._run.step  # the first step that it has not
        own = pathlib.Path(self._run.dir).parent  # .../offline-run-TIME-ID, beside earlier ones
        for old in own.parent.glob(f"offline-run-*-{about.id}"):
            if old != own:
                shutil.rmtree(old, ignore_errors=True)

    def log(self, step: int, values: dict[str, float]) -> None:
        """The values of a step; steps rise."""
        if step >= self._next:
            self._run.log(values, step=step)
            self._next = step + 1

    def score(self, step: int, values: dict[str, float]) -> None:
        """Scores after the last step."""
        self._run.summary.update(values)

    def close(self, failed: bool | None) -> None:
        """No more values for now; `failed` is whether the run became non-finite, None unended."""
        self._run.finish(exit_code=int(bool(failed)))


TRACKERS = {"mlflow": Mlflow, "wandb": Wandb}


def tracker(name: str):
    """The class of --track=NAME. Raises: InputError for an unknown or a missing one."""
    found = pick(TRACKERS, name, "--track")
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"--track={name}: needs another package: pip install "
                         f"'cellseg_jax[{name}]' ({error})") from error
    return found
