"""The page of a study: its answer in words, what is missing, charts, and how it opens."""

import math
import re
import shutil
import xml.dom.minidom

import browser
import helpers_study as helpers
import numpy as np
import pytest
from html_checker import Checker
from PIL import Image

from cellseg_jax.report import panels, svg
from cellseg_jax.studies import charts, stats
from cellseg_jax.studies.page import (
    PICTURED,
    _image_scores,
    _panels,
    _tiles,
    summary_sentence,
    write_study_page,
)
from cellseg_jax.studies.table import Row, Run, Table, collect


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
    scores = {row.name: _image_scores(row, "dice") for row in damaged.rows}
    spread = {name: np.std([scores[row][name][0] for row in scores], ddof=1)
              for name in scores["otsu"]}
    worst = max(spread, key=spread.get)
    section = text[text.index('id="images-on-which-the-rows-disagree-most"'):]
    assert re.search(r"field_\d+\.png", section)[0] == worst
    # image, truth and two predictions of each picture
    assert page.tags.count("img") == 4 * PICTURED
    assert f"prediction of otsu, {worst}" in text and f"prediction of unet_adam, {worst}" in text
    assert len(text) < 1e6


def test_tiles_are_those_that_were_drawn(tmp_path):
    for size in ((40, 60), (700, 900)):  # enlarged, reduced
        truth = np.zeros(size, np.int32)
        truth[3:30, 5:40] = 1
        image = np.random.default_rng(0).integers(0, 255, (*size, 1)).astype(np.uint8)
        panels.write_png(tmp_path / "a.png", panels.panel(image, truth, truth * 0, "caption"))
        drawn = panels._fit(panels.stretch(image), truth)[0]
        found = _tiles(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(found[0])[: drawn.shape[0], : drawn.shape[1]],
                                      drawn)
        assert found[1].size == found[2].size == found[0].size
        assert abs(found[0].height - drawn.shape[0]) <= panels.GAP


def test_pictures_of_names_that_begin_alike_are_left_out(tmp_path):
    long = "x" * 40
    folder = tmp_path / "eval/test_predictions"
    folder.mkdir(parents=True)
    for name in (long, "y.png"):
        Image.new("RGB", (40, 20)).save(folder / f"00_worst_dice0.5_{name}.png")
    run = Run("row", 0, str(tmp_path), "done", {"dice_mean": 0.5}, 1, 1, 1, 1, "", "", "")
    row = Row("row", {}, [run], *[{}] * 8)
    found = _panels(row_table(row), {long + "a", "b/" + long + "c", "d/y.png"})
    assert set(found) == {"d/y.png"}


def row_table(*rows):
    return Table(helpers.make_study(), "", list(rows), [], {}, [], [], ("dice_mean",))


def test_band_spans_the_curves_where_they_have_values():
    one = charts.band("a", [([1, 2, 4], [0.1, 0.2, 0.4]), ([2, 4, 6], [0.4, None, 0.8])])
    np.testing.assert_array_equal(one.x, [1, 2, 4, 6])
    np.testing.assert_allclose(one.low, [0.1, 0.2, 0.4, 0.8])
    np.testing.assert_allclose(one.mean, [0.1, 0.3, 0.5, 0.8])
    np.testing.assert_allclose(one.high, [0.1, 0.4, 0.6, 0.8])
    assert charts.band("a", [([1], [None]), ([1], [math.nan])]) is None
    n = 100_000
    long = charts.band("a", [(range(n), np.sin(np.arange(n)))])
    assert len(long.x) <= charts.MAX_POINTS and long.x[0] == 0 and long.x[-1] == n - 1


def test_bands_leave_out_what_lies_below_their_limits():
    one = charts.Band("a", *np.array([[1, 2, 3], [0.1, 0.5, 0.6], [0.2, 0.6, 0.7], [0.3, 0.7, 0.8]],
                                     float))
    text = charts.bands("t", "x", [one, None], limits=(0.5, 0.8), base=one)
    xml.dom.minidom.parseString(text)
    assert re.search(r'stroke-dasharray="none" d="([^"]*)"', text)[1].count("L") == 1
    assert charts.bands("t", "x", [None]) == ""
    point = charts.bands("t", "x", [charts.band("a", [([1], [0.5])])])
    assert "<circle" in point and "nan" not in point


@pytest.mark.parametrize("verdict", stats.VERDICTS)
def test_forest_tells_a_verdict_by_its_shape(verdict):
    rows = [charts.Difference("a & b", 0.02, 0.01, 0.03, verdict),
            charts.Difference("c" * 50, -0.01, math.nan, math.nan, "not distinguishable")]
    text = charts.forest("t", "x", rows, 0.005)
    xml.dom.minidom.parseString(text)
    assert charts.SHAPES[verdict] in text and "floor" in text and "nan" not in text
    assert f"a &amp; b +0.0200, {verdict}" in text
    assert len(set(charts.SHAPES.values())) == len(stats.VERDICTS)


def test_forest_keeps_small_differences_apart_beside_a_collapsed_row():
    rows = [charts.Difference(str(n), 0.002 * n, 0.002 * n - 0.001, 0.002 * n + 0.001, "better")
            for n in range(5)]
    text = charts.forest("t", "x", [*rows, charts.Difference("0", -0.8, -0.82, -0.78, "worse")])
    places = [float(x) for x in re.findall(r"translate\(([\d.]+) ", text)]
    assert np.diff(places[:5]).min() > 8 and text.count("span open") == 1
    assert charts.forest("t", "x", []) == ""
    assert "nan" not in charts.forest("t", "x", [charts.Difference("a", 0.0, 0.0, 0.0, "worse")])


def test_distributions_and_scatter_survive_missing_and_equal_values():
    text = charts.distributions("t", "dice", [("a", np.array([0.5])), ("b", np.array([np.nan])),
                                              ("c", np.r_[0.01, np.full(200, 0.9)])])
    xml.dom.minidom.parseString(text)
    assert text.count('class="violin"') == 2 and "\u25c21<" in text and "nan" not in text
    text = charts.scatter("t", "x", "y", [(0.5, 0.5, math.nan), (0.5, 0.5, 0.1), (math.nan, 1, 1)])
    xml.dom.minidom.parseString(text)
    assert ">1,2<" in text and text.count("<circle") == 2
    cost = charts.scatter("t", "minutes", "dice", [(5, 0.9, 0.1), (50, 0.8, 0.1)], diagonal=False)
    left, right = (float(x) for x in re.findall(r'<circle class="better" cx="([\d.]+)"', cost))
    assert (right - svg.LEFT) == pytest.approx(10 * (left - svg.LEFT), rel=0.01)  # x begins at 0
    assert "zero" not in cost and "zero" in text
    assert charts.scatter("t", "x", "y", []) == charts.distributions("t", "x", []) == ""


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
