"""Studies: tables of runs. What a study file imports, and what reads such a file."""

from cellseg_jax.studies.file import config_of, load, rows
from cellseg_jax.studies.grid import Grid
from cellseg_jax.studies.row_families import fractions
from cellseg_jax.studies.search.space import choice, ints, log, uniform
from cellseg_jax.studies.study import Claim, Study, claims_about, folds

__all__ = ["Claim", "Grid", "Study", "choice", "claims_about", "config_of", "folds", "fractions",
           "ints", "load", "log", "rows", "uniform"]
