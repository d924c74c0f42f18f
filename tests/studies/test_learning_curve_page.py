"""Learning curves of a study: numbers of the files, sentences, CSV, chart and page."""

import csv
import io
import json
import math

import helpers_study as helpers
import numpy as np
import pytest
from html_checker import Checker
from rich.console import Console

from cellseg_jax import studies
from cellseg_jax.studies import learning_curve
from cellseg_jax.studies.output import render, sentences, table_csv
from cellseg_jax.studies.output.page import write_study_page
from cellseg_jax.studies.output.summary import summary_sentence
from cellseg_jax.studies.row_families import FRACTION
from cellseg_jax.studies.table import Curve, collect

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
LIMIT = 0.86


def write(folder, *, limit=LIMIT, targets=(0.5, 0.82, 0.85, 0.9), shares=SHARES, repeats=4):
    """A study whose rows score limit - 0.4 n^-0.5 with n images; those mixed in do not count."""
    rows = studies.fractions({"unet": {}}, shares)
    study = helpers.make_study(
        rows=rows, reference={}, claims=(), repeats=repeats, baseline="unet_1",
        learning_curve={"metric": "dice_mean", "targets": targets})
    images = {row: round(320 * change[FRACTION]) for row, change in rows.items()}
    law = {row: limit - 0.4 * n**-0.5 for row, n in images.items()}
    helpers.write_study(folder, study, run_sd=0.003, image_sd=0.0, images=40,
                        effects={row: score - 0.8 for row, score in law.items()})
    for row, n in images.items():
        for repeat in range(repeats):
            file = folder / row / str(repeat) / "split.json"
            split = json.loads(file.read_text())
            split["train"] = [*split["train"][:n], "mixed/folder/a", "mixed/folder/b"]
            file.write_text(json.dumps(split))
            scores = file.parent / "eval/test.json"
            test = json.loads(scores.read_text())
            test["metrics"]["dice_mean"] = law[row] + 0.002 * (-1) ** repeat
            scores.write_text(json.dumps(test))
    return study


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    return collect(write(folder), folder)


def test_a_score_that_few_images_reached_is_not_called_out_of_reach():
    sizes = (5, 14, 48)
    fit = learning_curve.fit(sizes, [(0.82, 0.79, 0.78), (0.81, 0.78, 0.78), (0.81, 0.79, 0.77)])
    targets = {target: learning_curve.images_needed(fit, target) for target in (0.8, 0.9)}
    points = [("row", 0, size, mean) for size, mean in zip(sizes, fit.means, strict=True)]
    curve = Curve("unet", "dice_mean", points, 48.0, fit, "", targets)
    reached, never, _ = sentences.curve_sentences(curve)
    assert "0.80 was reached with 5 images already" in reached and "no growth" in reached
    assert "0.90 is not reachable" in never


def test_points_are_those_of_the_files_and_the_fit_is_their_law(table):
    [curve] = table.curves
    assert (curve.name, curve.metric, curve.problem) == ("unet", "dice_mean", "")
    assert len(curve.points) == 20 and curve.available == 320
    assert {(row, n) for row, _, n, _ in curve.points} == {
        ("unet_0.0625", 20), ("unet_0.125", 40), ("unet_0.25", 80), ("unet_0.5", 160),
        ("unet_1", 320)}
    np.testing.assert_allclose(curve.fit.parameters, (LIMIT, 0.4, 0.5), rtol=1e-3)
    assert curve.needed[0.85][0] == pytest.approx(1600, rel=1e-2)
    assert curve.needed[0.9][0] == math.inf


def test_sentences_say_what_each_target_takes(table):
    low, reached, beyond, never, about = sentences.curve_sentences(table.curves[0])
    assert low.startswith("unet: dice_mean 0.50 needs fewer than 20 training images")
    assert reached.startswith("unet: dice_mean 0.82 needs about 100 training images (95 %: ")
    assert reached.endswith(", 0.31 times the 320 that there are.")
    assert beyond.startswith("unet: dice_mean 0.85 needs about 1,600 training images (95 %: ")
    assert beyond.endswith(", 5 times the 320 that there are; extrapolated.")
    assert never.endswith("0.864).")
    assert never.startswith("unet: dice_mean 0.90 is not reachable with more images alone, as far "
                            "as these runs show: the curve levels off at 0.860 (95 %: 0.8")
    assert "from 20 to 320" in about and "4 repeats" in about


def test_an_interval_without_an_upper_end_says_so():
    fitted = learning_curve.Fit(np.array([0.9, 0.4, 0.5]), np.zeros((0, 3)),
                                np.array([20.0, 320]), np.array([0.8, 0.88]), 1.0)
    said = lambda interval: sentences.curve_sentences(Curve(
        "unet", "dice_mean", [], 640.0, fitted, "", {0.89: (1600.0, interval)}))
    assert "1,600 training images (95 %: 700 to no limit), 2.5 times" in said((700.0, math.inf))[0]
    assert "(95 %: fewer than 20 to over a million)" in said((3.0, 1e9))[0]
    assert "1,600 training images, 2.5 times" in said((math.nan, math.nan))[0]
    never = Curve("unet", "dice_mean", [], 640.0, fitted, "", {
        0.95: (math.inf, (3400.0, math.inf))})
    assert sentences.curve_sentences(never)[0].endswith(
        "They do not rule it out: the 95 % interval begins at 3,400 images.")
    assert "No interval: fewer than 3 repeats" in said((math.nan, math.nan))[-1]


def test_csv_holds_runs_curve_and_targets(table):
    lines = list(csv.DictReader(io.StringIO(table_csv.curves_csv(table))))
    assert list(lines[0]) == list(table_csv.CURVE_FIELDS)
    of = lambda what: [line for line in lines if line["what"] == what]
    assert len(of("run")) == 20 and len(of("asymptote")) == 1
    assert [(line["score"], line["images"]) for line in of("target")][-1] == ("0.9", "inf")
    assert {line["curve"] for line in lines} == {"unet"}
    for line in of("curve"):
        assert float(line["score_low"]) <= float(line["score"]) <= float(line["score_high"])
        assert float(line["score"]) == pytest.approx(LIMIT - 0.4 * float(line["images"]) ** -0.5,
                                                     abs=1e-4)


def test_terminal_markdown_and_page_tell_the_same(table, tmp_path):
    text = io.StringIO()
    render.show(table, Console(file=text, width=400))
    write_study_page(table, tmp_path / "report.html")
    page = Checker((tmp_path / "report.html").read_text())
    for line in sentences.curve_sentences(table.curves[0]):
        assert line in text.getvalue() and line in page.shown and line in render.markdown(table)
    assert summary_sentence(table).startswith("unet: dice_mean 0.50 needs fewer than")


def test_too_few_fractions_are_one_line(tmp_path):
    study = write(tmp_path, repeats=2, shares=(0.25, 0.5, 1))
    for repeat in range(2):
        helpers.damage(tmp_path / f"unet_0.5/{repeat}", "gone")
    table = collect(study, tmp_path)
    assert sentences.curve_sentences(table.curves[0]) == [
        "unet: a learning curve needs scores at 3 numbers of training images or more; there are 2."]
    write_study_page(table, tmp_path / "report.html")
    assert "there are 2." in (tmp_path / "report.html").read_text()
    assert "curve,asymptote" not in table_csv.curves_csv(table)


def test_a_study_without_a_run_still_has_its_sentence(tmp_path):
    study = write(tmp_path / "other", repeats=2)
    table = collect(study, tmp_path)
    assert "there are 0" in sentences.curve_sentences(table.curves[0])[0]
    write_study_page(table, tmp_path / "report.html")


def test_overlap_of_splits_counts_the_whole_training_part(tmp_path):
    study = write(tmp_path)
    study = study._replace(varies=("seed", "data.split_seed"))
    helpers.write_study(tmp_path, study, images=40)
    for row, share in zip(study.rows, SHARES, strict=True):
        for repeat in range(study.repeats):
            file = tmp_path / row / str(repeat) / "split.json"
            split = json.loads(file.read_text())
            split["train"] = split["train"][: round(320 * share)]
            file.write_text(json.dumps(split))
    assert collect(study, tmp_path).test_train_ratio == pytest.approx(40 / 320)


def test_a_curve_names_the_runs_that_it_has_to_do_without(tmp_path):
    study = write(tmp_path, shares=SHARES[2:], repeats=3)
    helpers.damage(tmp_path / "unet_0.5/1", "non-finite")
    curve = collect(study, tmp_path).curves[0]
    assert " Not in it: unet_0.5: 1 of 3 diverged." in sentences.curve_sentences(curve)[-1]
