"""The images on which a row wins and loses most: those of a plain loop over both files."""

import csv

import helpers_study as helpers
import numpy as np
import pytest

from cellseg_jax.report import panels
from cellseg_jax.studies.output import image_wins
from cellseg_jax.studies.output.disagreement import pictures, run_scores
from cellseg_jax.studies.table import collect


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = helpers.make_study(rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_sgd", "otsu")},
                               repeats=2, claims=(), reference={})
    helpers.write_study(folder, study, images=8)
    helpers.damage(folder / "unet_sgd/1", "unfinished")
    picture = panels.panel(np.zeros((40, 40, 1), np.uint8), *[np.eye(40, dtype=int)] * 2)
    for row in study.rows:
        (folder / row / "0/eval/test_predictions").mkdir()
        for n in range(8):
            panels.write_png(folder / row / "0/eval/test_predictions"
                             / f"{n:02d}_worst_dice0.500_field_{n:04d}.png.png", picture)
    return collect(study, folder)


def read(table, row, repeat):
    with open(f"{table.workdir}/{row}/{repeat}/eval/test_images.csv", newline="") as file:
        return {line["name"]: float(line["dice"]) for line in csv.DictReader(file)}


def test_images_are_those_of_a_plain_loop(table):
    scores = {row.name: run_scores(row, "dice") for row in table.rows}
    found = image_wins.of_rows(table, scores, "dice_mean")
    assert set(found) == {"unet_sgd", "otsu"}
    for row, repeats in (("unet_sgd", (0,)), ("otsu", (0, 1))):  # those that both have
        gains = {}
        for repeat in repeats:
            base, mine = read(table, "unet_adam", repeat), read(table, row, repeat)
            for name in base:
                gains.setdefault(name, []).append(mine[name] - base[name])
        ranked = sorted(gains, key=lambda name: -np.mean(gains[name]))
        wins = [name for name in ranked[:3] if np.mean(gains[name]) > 0]
        losses = [name for name in ranked[:-4:-1] if np.mean(gains[name]) < 0]
        assert [one.name for one in found[row][0]] == wins
        assert [one.name for one in found[row][1]] == losses and len(losses) == 3
        for one in (*found[row][0], *found[row][1]):
            assert one.gain == pytest.approx(np.mean(gains[one.name]))
            assert one.gain == pytest.approx(one.mine - one.base)


def test_less_is_better_turns_them(table):
    one, other = ([{"a": (0.1, ""), "b": (0.5, ""), "c": (np.nan, "")}, None],
                  [{"a": (0.3, ""), "b": (0.4, ""), "c": (0.1, "")}, {"a": (9.0, "")}])
    wins, losses = image_wins.extremes(one, other, larger_is_better=False)
    assert [image.name for image in wins] == ["a"] and [image.name for image in losses] == ["b"]
    assert image_wins.extremes(one, other)[0][0].name == "b"
    assert image_wins.extremes([None], [None]) == ([], [])


def test_pictures_take_turns_over_rows(table):
    scores = {row.name: run_scores(row, "dice") for row in table.rows}
    wins = image_wins.of_rows(table, scores, "dice_mean")
    found = pictures(table, {one.name for sides in wins.values() for side in sides for one in side})
    strips = image_wins.strips(table, wins, found)
    assert len(strips) == image_wins.PICTURED
    assert [strip["row"] for strip in strips[:4]] == ["unet_sgd", "otsu", "unet_sgd", "otsu"]
    first = strips[0]
    assert first["name"] == wins["unet_sgd"][0][0].name and first["side"] == "wins"
    assert [one["row"] for one in first["predictions"]] == ["unet_adam", "unet_sgd"]
    assert image_wins.strips(table, wins, {}) == []
