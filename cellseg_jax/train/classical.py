"""Methods without training: the folder of a run that is ready to be scored."""

import contextlib

from cellseg_jax import data
from cellseg_jax.config import derived
from cellseg_jax.inference import label_folder
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import RunFolder
from cellseg_jax.step.programs import check_model
from cellseg_jax.train.result import Result, has_ended, write_result, write_split
from cellseg_jax.train.run import Task, is_main_process
from cellseg_jax.train.training_data import known_of


def begin_classical(task: Task) -> Result:
    """Make the folder of a run of a method that has nothing to train.

    Raises: InputError for options or data that make no sense, or a folder of another run.
    """
    config = task.config
    check_model(config)
    if derived.is_labels(config):  # before the folder keeps the name of one that is not there
        label_folder.folder_of(config)
    with terminal.counting("reading images") as progress:
        arrays = data.load(config.data, progress)
    folder = RunFolder(task.workdir, config, arrays.fingerprint, writer=is_main_process())
    result = Result(str(folder.path), "done", 0, {})
    with contextlib.closing(folder):
        if folder.writer and not has_ended(folder.path, config):  # else it is left as it is
            parts = data.split_of(config.data, arrays)
            folder.write_environment({"method": config.model.name}, arrays.fingerprint,
                                     known_of(config, arrays, parts["train"]))
            write_split(folder, arrays, parts)
            write_result(folder, result, num_steps=0, timing=[])
    if not derived.is_labels(config):
        terminal.log(f"{task.workdir}: {config.model.name} learns nothing, so there is nothing to "
                     "train")
    return result
