"""Every format of a study's table: numbers with their noise, escaped, legible, machine readable."""

import csv
import io
import json
import math
import re

import helpers_study as helpers
import pytest
from rich.console import Console

from cellseg_jax import studies
from cellseg_jax.studies.output import render, table_csv
from cellseg_jax.studies.output.abstract import abstract
from cellseg_jax.studies.table import collect


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return collect(helpers.write_study(folder), folder)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A study with random splits, in which much is missing."""
    folder = tmp_path_factory.mktemp("broken")
    study = helpers.make_study(
        varies=("seed", "data.split_seed"), repeats=3, title="50% | *more* & <less>_{x}",
        rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_sgd", "unet_wide")}, claims=(),
        reference={})
    helpers.write_study(folder, study, images=8)
    helpers.damage(folder / "unet_sgd/1", "non-finite")
    helpers.damage(folder / "unet_wide/0", "code")
    return collect(study, folder)


def shown(table, width):
    text = io.StringIO()
    render.show(table, Console(file=text, width=width, markup=False, highlight=False, emoji=False))
    return text.getvalue()


def test_csv_gives_every_number_back(table):
    lines = list(csv.DictReader(io.StringIO(table_csv.csv_text(table))))
    assert len(lines) == len(table.rows) * len(table.metrics)
    assert list(lines[0]) == list(table_csv.FIELDS)
    for line in lines:
        row = next(r for r in table.rows if r.name == line["row"])
        metric, one = line["metric"], row.compared[line["metric"]]
        number = lambda key, line=line: float(line[key]) if line[key] else math.nan
        assert number("mean") == row.mean[metric] and number("sd") == row.sd[metric]
        assert line["verdict"] == row.verdicts[metric] and line["n"] == "5"
        if one is None:
            assert line["difference"] == line["p"] == "" and line["row"] == "unet_adam"
        else:
            assert (number("interval_low"), number("interval_high")) == one.interval
            assert number("p") == one.p and number("effect_size") == one.effect_size
            assert number("adjusted_p") == row.adjusted_p[metric]
    assert [line["row"] for line in lines if line["metric"] == "dice_mean" and line["best"] == "1"
            ] == ["unet_wide"]
    assert "nan" not in table_csv.csv_text(table)


def test_markdown_holds_a_score_its_noise_and_its_definition(table):
    text = render.markdown(table)
    row = table.rows[2]
    assert f"**{row.mean['dice_mean']:.3f} ± {row.sd['dice_mean']:.3f}**" in text  # the best
    assert text.count("**") == 2 * 3  # one in each of three scores
    assert "| unet_adam |" in text and "| 0.820 |" in text
    assert "Noise floor" in text and "8 times in 10" in text and "Holm" in text
    assert "corrected for the 4 claims with 3 repeats" in text
    assert "- dice_mean: 2TP/(2TP+FP+FN)" in text and "| Otsu is best |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = [line.replace("\\|", "").count("|") for line in lines]
    assert [len(set(widths[a:b])) for a, b in (
        (0, 7), (7, 13), (13, 27), (27, None))] == [1, 1, 1, 1]
    assert f"{table.rows[2].compared['iou_mean'].effect_size:.2f}" in text and "secondary" in text


def test_best_is_not_marked_where_rows_do_not_differ(table):
    tied = table._replace(best={"dice_mean": ("unet_wide", ("unet_sgd",))})
    assert "**" not in render.markdown(tied) and "textbf" not in render.latex(tied)
    assert "No row can be called best: unet_wide has the best mean, and unet_sgd is not" in (
        render.markdown(tied))


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_terminal_is_legible_at_any_width(table, broken, width):
    for one in (table, broken):
        text = shown(one, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text and "GiB" in text and "±" in text
        for row in one.rows:
            if width > 80:
                assert re.search(rf"^ ?{row.name}", text, re.MULTILINE)
            mean = f"{row.mean['dice_mean']:.3f}"
            assert mean in text
    text = shown(table, width)
    assert "distinguishable" in text and "contradicted" in text and "Noise floor" in text
    assert ("[+0." in text) == (width >= render.WIDE_TERMINAL)
    assert "dice_mean: 2TP/(2TP+FP+FN)" in text
    for row in table.rows:  # all metrics that the study names
        assert all(f"{row.mean[m]:.3f}" in text for m in table.study.metrics)
    assert re.search("iou_mean +seg", text)


def test_all_that_is_wrong_is_said(broken):
    for text in (render.markdown(broken), shown(broken, 100)):
        text = " ".join(text.split())
        assert "unet_sgd/1: loss or gradient not finite after step 31" in text
        assert "unet_wide/0 made by other code" in text and "unet_wide†" in text
        assert "corrected resampled t-test" in text and "seed and split" in text
        assert "1 of the table's 9 runs are missing or do not count" in text
        assert "(1 of 3 diverged)" in text and "by rank" in text


def test_special_characters_are_escaped(broken):
    text = render.latex(broken)
    body = re.sub(r"\\[&%$#_{}]", "", text)
    assert r"50\% | *more* \& \textless{}less\textgreater{}\_\{x\}" in text
    assert "±" not in text and render.CODE_MARK not in text and "_" not in body
    assert body.count("{") == body.count("}")
    assert [line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")][0] > 0
    assert r"# 50% \| \*more\* &amp; &lt;less>_{x}" in render.markdown(broken)


def test_latex_rows_have_as_many_cells_as_columns(table):
    text = render.latex(table)
    tabular = re.compile(r"\\begin{tabular}{(l?r*)}(.*?)\\end{tabular}", re.DOTALL)
    for columns, body in tabular.findall(text):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
    claim = table.claims[0]
    claim = claim._replace(claim=claim.claim._replace(text="[sic] augmentation helps"))
    starred = render.latex(table._replace(claims=[claim]))
    assert "{}[sic]" in starred  # else an option of the row before
    assert r"\toprule" in text and r"\textbf{0." in text and text.count(r"\begin{table}") == 2


def test_empty_study_has_a_table_in_every_format(tmp_path):
    table = collect(helpers.make_study(), tmp_path)
    for text in (render.markdown(table), render.latex(table), table_csv.csv_text(table),
                 shown(table, 80)):
        assert "adam" in text and not re.search(r"\bnan\b", text)
    text = render.markdown(table)
    assert "need at least 3 finished repeats" in text and "no result" in text
    assert "- no run of unet_adam, unet_sgd, unet_wide, unet_no_augment, otsu\n" in text


def test_single_run_has_no_spread_to_show(tmp_path):
    study = helpers.make_study(rows={"unet_adam": {}}, repeats=1, claims=())
    table = collect(helpers.write_study(tmp_path, study._replace(reference={}), images=4),
                            tmp_path)
    text = render.markdown(table)
    assert "±" not in text.split("\n\n")[1] and "**" not in text and "Noise" not in text


def test_repeats_that_vary_the_split_alone_are_of_one_seed(tmp_path):
    study = helpers.make_study(varies=("data.split_seed",), repeats=3, claims=(), reference={},
                               rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_sgd")})
    table = collect(helpers.write_study(tmp_path, study, images=6), tmp_path)
    assert "differ in the split alone" in render.markdown(table)
    assert "3 times, with other splits;" in abstract(table)[0]


def test_numbers_that_are_corrected_for_are_those_of_the_correction(tmp_path):
    """Rows and claims whose repeats are copies of one have no p and are not among them."""
    rows = {"otsu": {"model.name": "otsu"}, "otsu_2": {"model.name": "otsu", "eval.min_size": 3},
            "net": {}, "net_2": {"optimizer.lr": 1e-4}}
    claims = [studies.Claim(row, (row,), ("otsu",)) for row in list(rows)[1:]]
    study = helpers.write_study(tmp_path, helpers.make_study(
        rows=rows, baseline="otsu", claims=tuple(claims), reference={}, repeats=3), images=6)
    for row, score in (("otsu", 0.5), ("otsu_2", 0.6)):
        for file in (tmp_path / row).glob("*/eval/test.json"):
            test = json.loads(file.read_text())
            file.write_text(json.dumps(test | {"metrics": {"dice_mean": score}}))
    table = collect(study, tmp_path)
    row = min((row for row in table.rows if math.isfinite(row.adjusted_p["dice_mean"])),
              key=lambda row: row.adjusted_p["dice_mean"])
    assert row.adjusted_p["dice_mean"] == 2 * row.compared["dice_mean"].p  # Holm's first of two
    text = render.markdown(table)
    assert "Holm's correction for 2 rows" in text
    assert "corrected for the 2 claims with 3 repeats" in text
