"""Names in a run's folder that are of use without JAX, whose import takes seconds; see folder."""

import pathlib

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"  # what made the run; there from its first step on
RESULT_FILE = "result.json"  # that the run has ended, and how
METRICS_LOG = "metrics.jsonl"
TIMING_LOG = "timing.jsonl"  # the one log that is not deterministic
EVAL = "eval"


def is_run(path) -> bool:
    """Whether the folder is that of a run, begun or done."""
    return (pathlib.Path(path) / CONFIG_FILE).is_file()


def scores_file(workdir, name: str = "test") -> pathlib.Path:
    """The scores of a split, or of other data by its name."""
    return pathlib.Path(workdir) / EVAL / f"{name}.json"
