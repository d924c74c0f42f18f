"""Studies: tables of runs. What a study file imports: rows, Claim, Grid, fractions."""

from cellseg_jax.studies.file import Claim, Grid, Study, config_of, fractions, load, rows

__all__ = ["Claim", "Grid", "Study", "config_of", "fractions", "load", "rows"]
