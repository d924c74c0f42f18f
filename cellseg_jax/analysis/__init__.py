"""Analyses of a trained run, by name.

Each takes (workdir, config, folder, its own options by name) and writes tables and pictures into
`folder`; see page.Findings.
"""

import pathlib

from cellseg_jax import config as config_lib
from cellseg_jax.analysis import distances, filters, gradients, page, pruning
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.report import terminal
from cellseg_jax.runs.folder import check_same_config, read_config
from cellseg_jax.runs.lock import Lock

ANALYSES = {
    "pruning": pruning.analyse,
    "weights": distances.analyse,
    "gradients": gradients.analyse,
    "filters": filters.analyse,
}


def run(workdir, overrides, options: dict[str, dict]) -> bool:
    """Analyse a run and write analysis.html; False where it was stopped after saving.

    Args:
      workdir: the folder of a trained run.
      overrides: (config key, text); only where the data lie may differ from the run's config.
      options: {name of ANALYSES: its options by name}, in the order in which they are done.
    Raises: InputError without a trained network, or for a changed config.
    """
    workdir = pathlib.Path(workdir)
    config = config_lib.override(read_config(workdir), overrides)
    check_same_config(workdir, config)
    if derived.is_classical(config):
        raise InputError(f"--workdir: {workdir} is a run of {config.model.name}, which has no "
                         "layers to analyse; expected a trained network")
    with Lock(workdir):
        for name, chosen in options.items():
            with page.replacing(workdir, name) as folder:
                findings = ANALYSES[name](workdir, config, folder, **chosen)
                if findings is None:
                    terminal.log("stopped after saving; the same command continues")
                    return False
                page.write(folder, findings)
            terminal.log(f"{name}: {findings.text[0]}")
        terminal.log(f"page: {page.write_page(workdir)}")
    return True
