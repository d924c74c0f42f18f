"""How a run ended: what `train` gives back, and the files of the run's folder that record it."""

import json
from typing import NamedTuple

from cellseg_jax.files import write_atomic
from cellseg_jax.runs.folder import (
    RESULT_FILE,
    SPLIT_FILE,
    RunFolder,
    check_continues,
    names_of_parts,
)
from cellseg_jax.step.memory import peak_memory
from cellseg_jax.step.state import NON_FINITE, RUNNING, STOPPED_EARLY

STATUS = {RUNNING: "done", STOPPED_EARLY: "stopped early", NON_FINITE: "non-finite"}


class Result(NamedTuple):
    """How one run ended.

    status is one of STATUS, "paused" where its Task.until was done, "interrupted" by SIGTERM after
    saving, or "in use" by another process.
    """

    workdir: str
    status: str
    step: int
    metrics: dict  # of the last logged step


def has_ended(workdir, config) -> bool:
    """Whether a run has ended and the config does not make it longer.

    Raises: InputError if the folder holds a run of another config.
    """
    return (workdir / RESULT_FILE).exists() and not check_continues(workdir, config)


def write_result(folder: RunFolder, result: Result, num_steps: int, timing: list[dict]) -> None:
    """result.json: how a run ended and what it cost, by the lines of timing.jsonl."""
    # Of a run that trained beside others, its share.
    share = lambda key: round(sum(line[key] / line["members"] for line in timing), 3)
    write_atomic(folder.path / RESULT_FILE, json.dumps({
        "status": result.status, "step": result.step, "num_steps": num_steps,
        "train_seconds": share("seconds"), "cpu_seconds": share("cpu_seconds"),
        "members": max((line["members"] for line in timing), default=1),
        "peak_memory_gib": max((line["peak_memory_gib"] for line in timing),
                               default=round(peak_memory() / 2**30, 3)),
        "metrics": result.metrics}, indent=1))


def write_split(folder: RunFolder, arrays, parts: dict) -> None:
    """split.json: the names of the images of each part."""
    write_atomic(folder.path / SPLIT_FILE, json.dumps(names_of_parts(arrays, parts), indent=1))
