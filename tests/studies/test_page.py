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
from cellseg_jax.studies.output import render
from cellseg_jax.studies.output.disagreement import PICTURED, image_scores, run_scores
from cellseg_jax.studies.output.page import MARKERS, write_study_page
from cellseg_jax.studies.output.summary import summary_sentence
from cellseg_jax.studies.output.table_cells import MARKS
from cellseg_jax.studies.table import collect


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
                 "So many repeats decide a claim 8 times in 10",
                 "augmentation helps", "contradicted", "optimizer.name=sgd", "not distinguishable",
                 "stain <dark> (n = ", "Tests over images", "2TP/(2TP+FP+FN)",
                 "--study=configs/studies/optimisers.py", "git checkout 0123456789"):
        assert part in page.shown, part
    assert "stain <dark>" not in text
    top = page.shown.index("Differences to the baseline")
    assert page.shown.index("unet_sgd/1: no run") < top  # told first, not hidden
    for chart in re.findall(r"<svg.*?</svg>", text):
        xml.dom.minidom.parseString(chart)
    # differences, 2 published, 3 costs, scores of images, 2 charts of curves of each of 4 networks
    assert page.tags.count("svg") == 7 + 2 * 4
    assert [p.name for p in tmp_path.glob("*.tmp")] == []


def test_summary_counts_rows_by_their_verdict(damaged):
    text = summary_sentence(damaged)
    assert text.startswith("In dice_mean, 2 of 2 rows are shown to differ from the baseline "
                           "unet_adam: 2 worse (unet_no_augment, otsu). 2 rows cannot "
                           "be better while repeats are missing or have no score "
                           "(unet_sgd, unet_wide). Runs of one config")
    assert (f"To find a difference of 0.01 in dice_mean in 8 of 10 such studies, "
            f"{damaged.needed[0.01]} repeats of each row are needed; there are 5.") in text
    assert "Of 4 published claims: 1 contradicted, 3 undecided." in text
    few = damaged._replace(rows=[
        row._replace(verdicts={"dice_mean": row.verdicts["dice_mean"] and "too few repeats"})
        for row in damaged.rows], claims=[], needed={0.01: math.inf}, noise={})
    assert summary_sentence(few) == (
        "In dice_mean, no row can be told from the baseline unet_adam yet: too few repeats for a "
        "verdict, which takes 3 of both rows, with differences that vary. No number of repeats "
        "would find a difference of 0.01 in dice_mean reliably: that takes more images.")


def test_rows_with_too_few_repeats_are_not_called_equal(tmp_path):
    study = helpers.make_study(repeats=2)
    table = collect(helpers.write_study(tmp_path, study), tmp_path)
    assert {row.verdicts["dice_mean"] for row in table.rows[1:]} == {"too few repeats"}
    _, page = read(table, tmp_path / "report.html")
    texts = (page.shown, summary_sentence(table), render.markdown(table))
    for text in texts:  # the verdicts' words, and no others
        text = text.split("What the words mean")[0].split("Compared with")[0]
        assert "differ from the baseline" not in text and "distinguishable from it" not in text
        assert "too few repeats" in text
    assert "are not to be compared with it: too few repeats" in texts[0]


def with_targets(folder):
    """A study of which one row learns contours, with scores of classes 0, 1 and 2."""
    study = helpers.make_study(
        rows={"unet_adam": {}, "contour": {"data.target": "contour"}}, claims=(), reference={},
        metrics=("dice_mean", "dice_mean[0]", "dice_mean[contour]"))
    helpers.write_study(folder, study)
    for repeat in range(study.repeats):
        path = folder / f"contour/{repeat}/eval/test.json"
        test = json.loads(path.read_text())
        test["per_class"] = {n: {"dice_mean": 0.91 - 0.1 * int(n)} for n in "012"}
        path.write_text(json.dumps(test))
    return collect(study, folder)


def test_a_column_has_one_meaning_and_its_name(tmp_path):
    table = with_targets(tmp_path)
    text, page = read(table, tmp_path / "report.html")
    section = text[text.index('id="dice-mean-by-class"'):text.index('id="scores-of-the-images"')]
    head = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", section)
    cell, contour = ([re.sub(r"<.*?>", "", one) for one in row.split("</td>")[1:-1]]
                     for row in section.split("<tr>")[2:4])
    assert head == ["row", "cell", "background", "nucleus", "contour"]
    assert cell[1:] == ["–"] * 3 and float(cell[0]) > 0.5
    assert contour == ["–", "0.910", "0.810", "0.710"]
    means = {row.name: row.mean for row in table.rows}
    assert math.isnan(means["contour"]["dice_mean[0]"])  # its background is no cell
    assert means["unet_adam"]["dice_mean[0]"] == means["unet_adam"]["dice_mean"]
    assert means["contour"]["dice_mean[contour]"] == pytest.approx(0.71)
    note = ("dice_mean[0] is of 'cell' in unet_adam and of 'background' in contour/0, contour/1")
    assert note in page.shown and "dice_mean[cell]" in page.shown


def test_no_interval_is_shown_beyond_what_a_score_can_be(tmp_path):
    study = helpers.make_study(repeats=3, rows={"a": {}, "b": {"optimizer.lr": 1e-4}},
                               baseline="a", claims=(), reference={})
    table = collect(helpers.write_study(tmp_path, study, run_sd=0.45, effects={}), tmp_path)
    low, high = table.rows[1].compared["dice_mean"].interval
    assert low < -1 or high > 1
    _, page = read(table, tmp_path / "report.html")
    shown = [*map(float, re.findall(r"[-+]\d\.\d{3,4}(?=[],])", page.shown)),
             *map(float, re.findall(r"[-+]\d\.\d{3}(?=[],])", render.markdown(table)))]
    assert len(shown) >= 4 and max(map(abs, shown)) == 1
    assert stats.cut("hausdorff95", (-3.0, 9.0)) == (-3, 9)
    assert stats.cut("dice_mean[stained]", (-0.2, math.nan))[0] == 0


def test_page_of_a_study_without_runs(tmp_path):
    table = collect(helpers.make_study(), tmp_path / "none")
    _, page = read(table, tmp_path / "report.html")
    assert "No row can be compared with the baseline unet_adam in dice_mean yet: 0 of" in page.shown
    assert "0.59" in page.shown and "nan" not in page.shown  # what is published is there
    assert "svg" not in page.tags and "img" not in page.tags


def test_images_are_ranked_by_how_much_rows_disagree(damaged, tmp_path):
    text, page = read(damaged, tmp_path / "report.html")
    scores = {row.name: image_scores(run_scores(row, "dice")) for row in damaged.rows}
    spread = {name: np.std([scores[row][name][0] for row in scores], ddof=1)
              for name in scores["otsu"]}
    worst = max(spread, key=spread.get)
    section = text[text.index('id="images-on-which-the-rows-disagree-most"'):]
    assert re.search(r"field_\d+\.png", section)[0] == worst
    # image, truth and two predictions of each picture
    assert section.count("<img") == 4 * PICTURED
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
    for width in (1200, 390):
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
            area = '.search:has(+ .scroll[aria-label="All rows of the study"])'
            rows = page.page.locator(f"{tables} tbody tr:visible")
            page.page.fill(f"{area} input", "unet worse")
            assert [text.split()[0] for text in rows.all_inner_texts()] == ["unet_no_augment"]
            assert page.page.inner_text(f"{area} output") == "1 of 5 rows"
            page.page.fill(f"{area} input", "UNET -worse -sgd")
            assert {text.split()[0] for text in rows.all_inner_texts()} == {
                "unet_adam", "unet_wide"}
            page.page.fill(f"{area} input", "")
            assert rows.count() == 5


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


def test_a_cost_as_the_headline_has_the_unit_of_its_name(tmp_path):
    """Seconds, as its differences, and not the minutes of the column of costs."""
    study = helpers.make_study(repeats=3, metrics=("train_seconds", "dice_mean"), reference={},
                               rows={"a": {}, "b": {"model.channels": (8, 16)}}, baseline="a",
                               claims=())
    table = collect(helpers.write_study(tmp_path, study, images=4), tmp_path)
    _, page = read(table, tmp_path / "report.html")
    for row in table.rows:
        assert f"{row.mean['train_seconds']:.4f}" in page.shown
        assert f"{row.mean['cpu_seconds'] / 60:.2f}" in page.shown  # under "CPU minutes"
    assert f"{table.rows[1].compared['train_seconds'].difference:+.4f}" in page.shown
