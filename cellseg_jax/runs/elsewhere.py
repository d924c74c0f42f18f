"""A run whose folder cannot or shall not be written: a copy of it takes scores and analyses."""

import os
import pathlib
import shutil

from cellseg_jax.errors import InputError, os_error_line
from cellseg_jax.files import owner
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.folder import (
    ANALYSIS,
    ANALYSIS_PAGE,
    CHECKPOINTS,
    EVAL,
    TENSORBOARD,
    check_same_config,
    is_run,
    read_config,
)

# What is made of a run, and what belongs to the processes that write into it.
LEFT_OUT = (EVAL, ANALYSIS, ANALYSIS_PAGE, TENSORBOARD, "report*.html", "export", ".lock*",
            ".*.lock", ".*.sent", "*.tmp", "damaged_checkpoint_*")


def folders_of(workdirs: str, out) -> list[pathlib.Path]:
    """`folder_of` of several runs with commas between; `out` is for a single one. InputError."""
    folders = [folder for folder in workdirs.split(",") if folder]
    if not folders:
        raise InputError(f"--workdir: got {workdirs!r}; expected the folder of a trained run")
    if out and len(folders) > 1:
        raise InputError("--out: expected one run in --workdir")
    return [folder_of(folder, out) for folder in folders]


def folder_of(workdir, out) -> pathlib.Path:
    """The folder to write into: the run's own without `out`, else its copy there.

    A copy that was made before is used again.

    Raises: InputError where there is no such run, `out` holds something else, such as a copy of
      before the run was trained on, or the copy cannot be made.
    """
    workdir = pathlib.Path(workdir)
    if not out:
        return workdir
    out, config = pathlib.Path(out), read_config(workdir)
    if out.exists() and os.listdir(out):
        if not is_run(out):
            raise InputError(f"--out: {out} holds something else than a copy of the run; choose "
                             "an empty or new folder")
        check_same_config(out, config)
        saved = [checkpoint.saved_steps(folder / CHECKPOINTS) for folder in (workdir, out)]
        if saved[0] != saved[1]:
            raise InputError(f"--out: {out} holds a copy of the run as it was at step "
                             f"{saved[1].get('last')}, now it is at {saved[0].get('last')}; choose "
                             "a new folder, or delete it")
        return out
    new = out.absolute().with_name(f".{out.name}.{owner()}.tmp")
    try:
        shutil.copytree(workdir, new, ignore=shutil.ignore_patterns(*LEFT_OUT))
        new.replace(out)  # an empty folder too
    except OSError as error:
        cause = error.args[0][0][2] if isinstance(error, shutil.Error) else os_error_line(error)
        raise InputError(f"--out: cannot copy {workdir} to {out} ({cause}); choose another "
                         "folder") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return out
