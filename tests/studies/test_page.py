"""The page of a study: its answer in words, what is missing, charts, and how it opens."""

import json
import math
import re
import shutil
import xml.dom.minidom

import browser
import helpers_study as helpers
import numpy as np
import pytest
from html_checker import HOSTILE, HOSTILE_FILE, Checker, assert_only_text

from cellseg_jax import studies
from cellseg_jax.files import read_csv, write_csv
from cellseg_jax.report import panels, row_charts
from cellseg_jax.studies import stats
from cellseg_jax.studies.claims import JudgedClaim
from cellseg_jax.studies.disagreement import PICTURED, image_scores
from cellseg_jax.studies.page import MARKERS, write_study_page
from cellseg_jax.studies.summary import summary_sentence
from cellseg_jax.studies.table import collect
from cellseg_jax.studies.table_cells import MARKS


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A table with runs that are gone, unfinished, and of other code; pictures of some images."""
    folder = tmp_path_factory.mktemp("runs")
    study = helpers.write_study(folder)
    helpers.damage(folder / "unet_sgd/1", "gone")
    helpers.damage(folder / "unet_wide/4", "unfinished")
    helpers.damage(folder / "unet_sgd/2", "code")
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 60), np.int32)
    truth[5:20, 5:20], truth[22:38, 30:55] = 1, 2
    image = rng.integers(0, 255, (40, 60, 1)).astype(np.uint8)
    for row, pred in (("unet_adam", truth), ("otsu", np.roll(truth, 9, 1))):
        pictures = folder / row / "0/eval/test_predictions"
        pictures.mkdir()
        panels.write_png(pictures / "drawn.png", panels.panel(image, truth, pred))
        for n in range(24):
            shutil.copy(pictures / "drawn.png",
                        pictures / f"{n:02d}_worst_dice0.500_field_{n:04d}.png.png")
    return collect(study, folder)


def read(table, path):
    write_study_page(table, path)
    text = path.read_text()
    return text, Checker(text)


def test_page_holds_the_answer_its_noise_and_what_is_missing(damaged, tmp_path):
    text, page = read(damaged, tmp_path / "report.html")
    for part in ("Optimisers, width & augmentation", summary_sentence(damaged),
                 "unet_sgd/1: no run", "unet_wide/4: unfinished", "other code",
                 "augmentation helps", "contradicted", "optimizer.name=sgd", "not distinguishable",
                 "stain <dark> (n = ", "Tests over images", "2TP/(2TP+FP+FN)",
                 "--study=configs/studies/optimisers.py", "git checkout 0123456789"):
        assert part in page.shown, part
    assert "stain <dark>" not in text
    top = page.shown.index("Differences to the baseline")
    assert page.shown.index("unet_sgd/1: no run") < top  # told first, not hidden
    for chart in re.findall(r"<svg.*?</svg>", text):
        xml.dom.minidom.parseString(chart)
    # differences, 2 published, cost, scores of images, 2 charts of curves for each of 4 networks
    assert page.tags.count("svg") == 5 + 2 * 4
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_summary_counts_rows_by_their_verdict(damaged):
    text = summary_sentence(damaged)
    verdicts = [row.verdicts["dice_mean"] for row in damaged.rows]
    assert verdicts.count("better") == 1 and verdicts.count("worse") == 2
    assert text.startswith("In dice_mean, 3 of 4 rows differ from the baseline unet_adam: 1 better "
                           "(unet_wide), 2 worse (unet_no_augment, otsu). 1 row is not disting")
    assert f"a difference of 0.01 takes {damaged.needed[0.01]} repeats (there are 5)" in text
    assert "Of 4 published claims: 2 supported, 1 contradicted, 1 undecided." in text
    few = damaged._replace(rows=[
        row._replace(verdicts={"dice_mean": row.verdicts["dice_mean"] and "too few repeats"})
        for row in damaged.rows], claims=[], needed={0.01: math.inf}, noise={})
    assert summary_sentence(few) == (
        "In dice_mean, none of 4 rows differ from the baseline unet_adam. 4 rows are without a "
        "verdict: too few repeats. A difference of 0.01 takes more test images, whatever the "
        "repeats (there are 5).")


def test_page_of_a_study_without_runs(tmp_path):
    table = collect(helpers.make_study(), tmp_path / "none")
    _, page = read(table, tmp_path / "report.html")
    assert "No row can be compared with the baseline unet_adam in dice_mean yet: 0 of" in page.shown
    assert "0.59" in page.shown and "nan" not in page.shown  # what is published is there
    assert "svg" not in page.tags and "img" not in page.tags


def test_images_are_ranked_by_how_much_rows_disagree(damaged, tmp_path):
    text, page = read(damaged, tmp_path / "report.html")
    scores = {row.name: image_scores(row, "dice") for row in damaged.rows}
    spread = {name: np.std([scores[row][name][0] for row in scores], ddof=1)
              for name in scores["otsu"]}
    worst = max(spread, key=spread.get)
    section = text[text.index('id="images-on-which-the-rows-disagree-most"'):]
    assert re.search(r"field_\d+\.png", section)[0] == worst
    # image, truth and two predictions of each picture
    assert page.tags.count("img") == 4 * PICTURED
    assert f"prediction of otsu, {worst}" in text and f"prediction of unet_adam, {worst}" in text
    assert len(text) < 1e6


def test_every_verdict_has_a_mark_and_a_marker_of_its_own():
    assert set(MARKS) == set(MARKERS) == set(stats.VERDICTS)
    assert sorted(MARKERS.values()) == sorted(row_charts.MARKERS)


def hostile_study(folder, word, file):
    """The page of a study whose rows, claims, strata, classes, images, ... are called `word`."""
    rows = {file: {}, f"{file} 2": {"optimizer.lr": word, word: 1}}
    study = helpers.make_study(
        rows=rows, baseline=file, title=word, path=word, repeats=3, varies=("seed", word),
        reference={file: {"dice_mean": 0.8}}, claims=(
            studies.Claim(word, (file,), (f"{file} 2",)),))
    runs = folder / file
    written = study._replace(rows={name: {} for name in rows}, varies=("seed",), claims=())
    helpers.write_study(runs, written)
    picture = panels.panel(np.zeros((40, 40, 1), np.uint8), *[np.eye(40, dtype=int)] * 2)
    for row in rows:
        for repeat in range(3):
            rename(runs / row / str(repeat), word, file)
        for n in range(24):
            panels.write_png(runs / row / "0/eval/test_predictions" / (
                f"{n:02d}_worst_dice0.5_{f'{n:02d}{file}'[:40]}.png"), picture)
    helpers.damage(runs / f"{file} 2/2", "gone")
    table = collect(written, runs)
    table = table._replace(
        study=study, notes=[word], missing=[word],
        rows=[row._replace(changes=study.rows[row.name]) for row in table.rows],
        claims=[JudgedClaim(study.claims[0], "undecided", table.rows[1].compared["dice_mean"],
                            (file, word), 7)])
    write_study_page(table, runs / "report.html")
    return (runs / "report.html").read_text()


def rename(folder, word, file):
    """Call what a run measured `word`."""
    path = folder / "eval/test_images.csv"
    write_csv(path, [row | {"name": f"{n:02d}{file}", "stratum": word}
                     for n, row in enumerate(read_csv(path))])
    path = folder / "eval/test.json"
    test = json.loads(path.read_text())
    part = next(iter(test["per_stratum"].values()))
    test["per_stratum"] = test["per_class"] = {word: part, "other": part}
    test["definitions"]["dice_mean"] = word
    path.write_text(json.dumps(test))
    (folder / "eval/test_predictions").mkdir(exist_ok=True)
    path = folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": word}))


def test_no_name_or_value_becomes_markup(tmp_path):
    hostile = hostile_study(tmp_path, HOSTILE, HOSTILE_FILE)
    assert_only_text(hostile, hostile_study(tmp_path, "word", "word"), 120)


@pytest.mark.slow
def test_page_opens_sorts_and_fits(damaged, tmp_path):
    path = tmp_path / "report.html"
    read(damaged, path)
    for width in (1280, 390):
        with browser.opened(path, width=width, dark=width == 390) as page:
            assert page.errors == [] and page.requests == [] and page.overflow() <= 0
            assert page.broken_pictures() == []
            tables = '.scroll[aria-label="All rows of the study"] table'
            names = page.column(1, tables)
            page.click(f"{tables} th:nth-child(2) button")
            scores = [float(text.split()[0]) for text in page.column(2, tables)]
            assert scores == sorted(scores) and page.column(1, tables) != names
            page.press(f"{tables} th:nth-child(4) button")
            ups = [float(text.split()[0]) for text in page.column(4, tables)]
            assert ups == sorted(ups) and len(ups) == 5


@pytest.mark.slow
def test_page_of_many_rows_with_long_names_stays_readable_and_small(tmp_path):
    names = [f"architecture_{n:02d}_with_a_very_long_name_of_its_own" for n in range(40)]
    study = helpers.make_study(rows={n: {} for n in names}, reference={}, claims=(), repeats=3,
                               baseline=names[0])
    helpers.write_study(tmp_path / "runs", study, effects={})
    table = collect(study, tmp_path / "runs")
    text, _ = read(table, tmp_path / "report.html")
    assert len(text) < 1e6
    with browser.opened(tmp_path / "report.html", width=390) as page:
        assert page.errors == [] and page.overflow() <= 0
