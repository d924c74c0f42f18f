"""Pictures of test images that a study's runs kept."""

import helpers_study as helpers
from PIL import Image

from cellseg_jax.studies.output.disagreement import pictures
from cellseg_jax.studies.table import Row, Run, Table


def test_pictures_of_names_that_begin_alike_are_left_out(tmp_path):
    long = "x" * 40
    folder = tmp_path / "eval/test_predictions"
    folder.mkdir(parents=True)
    for name in (long, "y.png"):
        Image.new("RGB", (40, 20)).save(folder / f"00_worst_dice0.5_{name}.png")
    run = Run("row", 0, str(tmp_path), "done", {"dice_mean": 0.5}, 1, 1, 1, 1, 1, "", "", "")
    row = Row("row", {}, [run], *[{}] * 8)
    found = pictures(row_table(row), {long + "a", "b/" + long + "c", "d/y.png"})
    assert set(found) == {"d/y.png"}


def row_table(*rows):
    return Table(helpers.make_study(), "", list(rows), [], {}, [], [], ("dice_mean",))
