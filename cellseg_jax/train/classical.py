"""Methods without training: the folder of a run that is ready to be scored."""

import contextlib

from cellseg_jax import data
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import RunFolder
from cellseg_jax.step.state import check_model
from cellseg_jax.train.result import Result, write_result, write_split
from cellseg_jax.train.run import Task, is_main_process


def begin_classical(task: Task) -> Result:
    """Make the folder of a run of a method that has nothing to train.

    Raises: InputError for options or data that make no sense, or a folder of another run.
    """
    config = task.config
    check_model(config)
    with terminal.counting("reading images") as progress:
        arrays = data.load(config.data, progress)
    folder = RunFolder(task.workdir, config, arrays.fingerprint, writer=is_main_process())
    result = Result(str(folder.path), "done", 0, {})
    with contextlib.closing(folder):
        folder.write_environment({"method": config.model.name}, arrays.fingerprint)
        if folder.writer:
            write_split(folder, arrays, data.split_of(config.data, arrays))
            write_result(folder, result, num_steps=0, timing=[])
    terminal.log(f"{task.workdir}: {config.model.name} learns nothing, so there is nothing to "
                 "train")
    return result
