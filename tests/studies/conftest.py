"""Runs that several tests of studies read; written once."""

import helpers_study as helpers
import pytest

from cellseg_jax.studies.table import collect

EFFECTS = {"unet_wide": 0.06, "unet_no_augment": -0.03, "otsu": -0.25}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """(study, folder): five repeats; unet_wide is better and takes longer, classic confounded."""
    folder = tmp_path_factory.mktemp("runs")
    rows = {**helpers.ROWS, "classic": {"model.name": "unet_classic", "model.channels": (4, 8)}}
    study = helpers.make_study(rows=rows, margin={"dice_mean": 0.01}, reference={})
    return helpers.write_study(folder, study, effects=EFFECTS, images=6), folder


@pytest.fixture(scope="session")
def table(runs):
    """The table of `runs`; not to be changed."""
    return collect(*runs)
