import numpy as np
import pytest

from cellseg_jax.data.quality import annotation
from cellseg_jax.data.quality.annotation import Covering, covering, of_covering, of_unknown, unknown

FOLDER = {"ignore": "", "target": "foreground"}


def label_with(id_):
    """(20, 20): one id all over but for two objects."""
    label = np.full((20, 20), id_, np.int32)
    label[3:8, 3:8], label[10:14, 9:15] = 1, 2
    return label


@pytest.mark.parametrize("id_", [255, 65535, 500_000_000])
def test_an_id_that_covers_most_masks_is_an_error(id_):
    found = [covering(label_with(id_))] * 4 + [Covering()] * 3
    assert found[0] == Covering(id_, (400 - 49) / 400)
    [error] = of_covering(found, FOLDER)
    assert error.level == "error"
    assert error.what.startswith(f"id {id_} covers 88% of 4 masks (of 7): not annotated? set "
                                 f"config.data.ignore={id_}")
    assert of_covering(found + [Covering()], FOLDER) == []  # half of the masks
    assert of_covering(found[:2], FOLDER) == []  # too few


@pytest.mark.parametrize("id_", [255, 65535, 2**31 - 1])
def test_the_highest_value_need_not_surround_what_is_annotated(id_):
    label = np.zeros((20, 20), np.int32)
    label[:, 5:], label[3:8, :3] = id_, 1  # annotated is a strip at the left
    assert covering(label) == Covering(id_, 0.75)
    [error] = of_covering([covering(label)] * 12, FOLDER)
    assert error.what.startswith(f"id {id_} covers 75% of 12 masks (of 12): not annotated? set "
                                 f"config.data.ignore={id_}")
    label[label == id_] = 9
    assert covering(label) == Covering()


def test_large_cells_are_no_background():
    cell = np.zeros((20, 20), int)
    cell[1:19, 1:20] = 7  # away from the upper side
    cell[0, 0] = 2
    alone = np.full((20, 20), 7)
    for label in (cell, alone, np.zeros((20, 20), int), np.maximum(label_with(0), 0)):
        assert covering(label) == Covering()


def test_what_is_not_annotated_is_counted():
    label = label_with(0)
    assert unknown(label) == (0, 0)
    label[:, :3] = -1  # beside object 1 alone
    found = [unknown(label), unknown(label_with(0))]
    assert found[0] == (60, 1)
    [note] = of_unknown(found, [400, 400], FOLDER)
    assert note.what.startswith("7.5% of the pixels are not annotated, in 1 of 2 masks")
    [warning] = of_unknown(found[1:], [400], FOLDER | {"ignore": "255"})
    assert warning.level == "warning" and "got '255', but no mask has a pixel" in warning.what
    assert annotation.of_unknown(found[1:], [400], FOLDER) == []


def test_an_empty_last_row_or_column_of_all_masks_is_a_note():
    label = np.zeros((9, 7), np.int32)
    label[3:6, 1:3], label[5:, 5:] = 1, 2  # the second one in the corner
    cut = label.copy()
    cut[-1], cut[:, -1] = 0, 0
    assert annotation.sides(label) == ("blr", "br") and annotation.sides(cut) == ("blr", "")
    notes = annotation.of_sides([annotation.sides(cut)] * 5)
    assert [note.what.partition(" is empty")[0] for note in notes] == [
        "the last row", "the first column", "the last column"]
    assert all(note.level == "note" and "in 5 of 5" in note.what for note in notes)
    assert not annotation.of_sides([annotation.sides(cut)] * 4)
    found = annotation.of_sides([annotation.sides(one) for one in [cut] * 9 + [label]])
    assert [note.what.partition(" is")[0] for note in found] == ["the first column"]
