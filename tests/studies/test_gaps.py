"""Repeats that diverged or are missing: shown, counted, and never an advantage."""

import csv
import io
import itertools
import json
import math
import shutil

import helpers_study as helpers
import numpy as np
import pytest
from scipy import stats as scipy_stats

from cellseg_jax import studies
from cellseg_jax.studies import pareto, stats
from cellseg_jax.studies.gaps import Gaps, by_rank, limited, with_last
from cellseg_jax.studies.output import render, table_csv
from cellseg_jax.studies.output.abstract import abstract
from cellseg_jax.studies.output.next_step import next_step
from cellseg_jax.studies.output.page import write_study_page
from cellseg_jax.studies.output.summary import summary_sentence
from cellseg_jax.studies.table import collect

WORSE, LAST = -np.inf, np.array([0.8, 0.81, 0.82, 0.83, 0.84])


@pytest.fixture(scope="module")
def done(runs):
    """A study of three rows and five repeats, of which unet_wide is better in each."""
    study, folder = runs
    return study._replace(
        rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_sgd", "unet_wide")}, margin={},
        claims=(studies.Claim("wide is better", ("unet_wide",), ("unet_adam",)),
                studies.Claim("wide is equal", ("unet_wide",), ("unet_adam",), equal_within=0.5))
    ), folder


def damaged(done, folder, **runs):
    """The table of a copy of the study, with {row: {repeat: damage}}."""
    study, source = done
    for row in study.rows:
        shutil.copytree(source / row, folder / row, dirs_exist_ok=True)
    for row, repeats in runs.items():
        for repeat, what in repeats.items():
            helpers.damage(folder / row / str(repeat), what)
    return collect(study, folder)


def row_of(table, name):
    return next(row for row in table.rows if row.name == name)


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word, first, second, expected", [
    ("better", Gaps(5), Gaps(5), "better"),
    ("better", Gaps(5, 1), Gaps(5), "diverged"),
    ("better", Gaps(5, 0, 1), Gaps(5), "incomplete"),
    ("better", Gaps(5, 1, 1), Gaps(5), "diverged"),
    ("better", Gaps(5), Gaps(5, 2), "better"),  # the other one's survivors are its lucky runs
    ("worse", Gaps(5, 1), Gaps(5), "worse"),
    ("worse", Gaps(5), Gaps(5, 1), "diverged"),
    ("worse", Gaps(5), Gaps(5, 0, 1), "incomplete"),
    ("not distinguishable", Gaps(5, 1), Gaps(5), "diverged"),
    ("not distinguishable", Gaps(5), Gaps(5, 0, 1), "incomplete"),
    ("too few repeats", Gaps(5, 3), Gaps(5), "diverged"),
    ("too few repeats", Gaps(5, 0, 3), Gaps(5), "too few repeats"),
])
def test_the_side_that_lacks_a_repeat_wins_nothing(word, first, second, expected):
    assert limited(word, first, second) == expected
    assert expected in stats.VERDICTS


def test_gaps_in_words():
    assert str(Gaps(5, 2)) == "2 of 5 diverged" and str(Gaps(5, 0, 1)) == "1 of 5 missing"
    assert str(Gaps(5, 0, 0, 3)) == "3 of 5 undefined"
    assert str(Gaps(5, 2, 1)) == "2 diverged, 1 missing of 5" and not Gaps(5) and str(Gaps(5)) == ""


# --- by rank --------------------------------------------------------------------------------------


def test_rank_test_equals_all_permutations():
    """With ties and diverged repeats, by the definition: every choice of the first's ranks."""
    a, b = np.array([WORSE, 0.9, 0.82, WORSE]), np.array([0.8, 0.82, 0.7, WORSE])
    ranks = scipy_stats.rankdata([*a, *b])
    sums = np.array([ranks[list(chosen)].sum() for chosen in itertools.combinations(range(8), 4)])
    far = np.abs(sums - sums.mean())
    one = by_rank(a, b)
    assert one.p == pytest.approx(np.mean(far >= abs(ranks[:4].sum() - sums.mean()) - 1e-9))
    ahead = (a[:, None] > b).astype(int) - (a[:, None] < b)
    assert one.effect_size == pytest.approx(ahead.mean())


def test_rank_test_without_ties_equals_the_exact_test_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6))
    theirs = scipy_stats.mannwhitneyu(a, b, method="exact").pvalue
    assert by_rank(a, b).p == pytest.approx(theirs)
    a, b = rng.normal(size=(2, 9)) + np.array([[0.6], [0]])  # too many for all permutations
    theirs = scipy_stats.mannwhitneyu(a, b, method="exact").pvalue
    assert by_rank(a, b).p == pytest.approx(theirs, abs=4 * math.sqrt(theirs / 9999))
    assert by_rank(a, b).p == by_rank(a, b).p  # drawn with a fixed seed


def test_diverged_is_last_whatever_the_direction_of_the_metric():
    diverged = np.array([False, True, False, False, False])
    assert with_last(LAST, diverged, True).argmin() == 1
    assert with_last(LAST, diverged, False).argmin() == 1
    assert with_last(LAST, ~diverged, False).argmax() == 1


def test_a_row_that_diverged_always_is_worse_by_rank():
    assert by_rank(np.full(5, WORSE), LAST).p == pytest.approx(2 / math.comb(10, 5))
    assert by_rank(np.full(5, WORSE), LAST).difference < 0
    assert by_rank(np.full(5, WORSE), np.full(5, WORSE)).p == 1
    assert math.isnan(by_rank(LAST[:2], LAST[:2]).p)
    # Missing is not diverged: it is left out.
    hole = np.array([math.nan, *LAST[1:]])
    assert by_rank(hole, LAST).n == 4


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_rows_wholly_apart_are_told_apart_in_any_order_of_their_repeats(order):
    """Repeats share their splits, and are often in one order in both rows."""
    below = np.array([WORSE, 0.81, 0.85, 0.86, 0.88])
    above = np.array([0.90, 0.93, 0.95, 0.96, 0.97])[[*order, 3, 4]]
    assert by_rank(above, below, 0.125).p == pytest.approx(2 / math.comb(10, 5))
    assert by_rank(np.full(5, 0.9), np.full(5, 0.8), 0.125).p == 1  # copies of one run


def test_overlapping_splits_never_decide_more_by_rank():
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b = rng.normal(size=(2, 5)) + np.array([[1.5], [0]])
        assert by_rank(a, b, 0.125).p >= by_rank(a, b).p


# --- in the table ---------------------------------------------------------------------------------


def test_a_row_is_not_better_by_its_survivors(done, tmp_path):
    """Two of five became non-finite; the three others are far ahead, and it stays undecided."""
    assert row_of(damaged(done, tmp_path / "whole"), "unet_wide").verdicts["dice_mean"] == "better"
    table = damaged(done, tmp_path / "two", unet_wide={1: "non-finite", 3: "non-finite"})
    row = row_of(table, "unet_wide")
    survivors = row.compared["dice_mean"]
    assert stats.verdict(survivors, row.adjusted_p["dice_mean"]) == "better" and survivors.n == 3
    assert row.verdicts["dice_mean"] == "diverged" and row.gaps["dice_mean"] == Gaps(5, 2)
    assert table.best["dice_mean"][0] != "unet_wide"
    reading = row.by_rank["dice_mean"]
    assert reading.verdict == "not distinguishable" and reading.comparison.n == 5
    assert not row_of(table, "unet_sgd").by_rank  # neither it nor the baseline diverged
    assert [one.judgement for one in table.claims] == ["undecided", "undecided"]
    assert table.claims[0].lacking == "unet_wide: 2 of 5 diverged"


def test_it_stands_in_every_format(done, tmp_path):
    table = damaged(done, tmp_path, unet_wide={1: "non-finite", 3: "non-finite"})
    write_study_page(table, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in (render.markdown(table), render.latex(table), page):
        assert "2 of 5 diverged" in text and "not distinguishable" in text
    text = render.markdown(table)
    assert "| 2 of 5 diverged; by rank not distinguishable |" in text
    assert "cannot be better nor best" in text and "**" not in text
    assert "1 row cannot be better, since repeats diverged (unet_wide)" in summary_sentence(table)
    line = next(one for one in csv.DictReader(io.StringIO(table_csv.csv_text(table)))
                if one["row"] == "unet_wide" and one["metric"] == "dice_mean")
    assert (line["n"], line["repeats"], line["diverged"], line["missing"]) == ("3", "5", "2", "0")
    assert (line["verdict"], line["rank_verdict"], line["best"]) == (
        "diverged", "not distinguishable", "0")


def test_a_row_without_survivors_is_judged_by_rank(done, tmp_path):
    table = damaged(done, tmp_path, unet_sgd=dict.fromkeys(range(5), "non-finite"))
    row = row_of(table, "unet_sgd")
    assert row.verdicts["dice_mean"] == "diverged" and row.by_rank["dice_mean"].verdict == "worse"
    assert "- (5 of 5 diverged)" in render.markdown(table)
    assert table.best["dice_mean"] == ("unet_wide", ())


def test_best_is_better_than_rows_with_survivors_by_rank(done, tmp_path):
    """Four of five diverged: no test of the one that is left, but a reading of all five."""
    table = damaged(done, tmp_path, unet_sgd=dict.fromkeys(range(4), "non-finite"))
    assert table.best["dice_mean"] == ("unet_wide", ())


@pytest.mark.parametrize("what, words", [
    ("non-finite", "unet_sgd is not shown to be worse: repeats have no score"),
    ("gone", "unet_sgd is not to be compared with it: too few repeats")])
def test_best_is_not_better_than_what_was_not_compared(done, tmp_path, what, words):
    """Three repeats, of one row none ended: nothing shows that it is worse."""
    study, source = done
    study = study._replace(repeats=3, claims=())
    table = damaged((study, source), tmp_path, unet_sgd=dict.fromkeys(range(3), what))
    assert table.best["dice_mean"][1] == ("unet_sgd",)
    text = render.markdown(table)
    assert "**" not in text.split("## ")[0] and words in text and "is best, and better" not in text


def test_a_row_that_has_no_such_score_does_not_keep_others_from_being_best(runs, tmp_path):
    study, source = runs
    study = study._replace(rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_wide", "otsu")},
                           claims=(), margin={})
    damaged((study, source), tmp_path)
    for repeat in range(5):
        path = tmp_path / f"otsu/{repeat}/eval/test.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ms_per_image": None}))
    assert collect(study, tmp_path).best["ms_per_image"] == ("unet_adam", ())


def test_a_baseline_that_diverged_cannot_win(done, tmp_path):
    study, _ = done
    table = damaged((study._replace(baseline="unet_wide", claims=()), done[1]), tmp_path,
                    unet_wide={2: "non-finite"})
    row = row_of(table, "unet_adam")
    assert row.verdicts["dice_mean"] == "diverged" and row.gaps["dice_mean"] == Gaps(5)
    assert "diverged (unet_wide: 1 of 5 diverged); by rank" in render.markdown(table)


def test_a_missing_repeat_keeps_a_row_from_winning_and_not_from_losing(done, tmp_path):
    table = damaged(done, tmp_path / "a", unet_wide={4: "gone"})
    assert row_of(table, "unet_wide").verdicts["dice_mean"] == "incomplete"
    assert "incomplete (1 of 5 missing)" in render.markdown(table)
    assert "while repeats are missing or have no score (unet_wide)" in summary_sentence(table)
    study, source = done
    table = damaged((study._replace(baseline="unet_wide", claims=()), source), tmp_path / "b",
                    unet_adam={4: "unfinished"})
    assert row_of(table, "unet_adam").verdicts["dice_mean"] == "worse"
    # With nothing but whole repeats asked for, it is what it was.
    assert row_of(collect(study, tmp_path / "a", repeats=4), "unet_wide").verdicts[
        "dice_mean"] == "better"


def test_a_score_that_is_not_defined_is_not_a_run_to_come(done, tmp_path):
    """A repeat without a test image of the stratum has ended: no command gives it a score."""
    study, source = done
    study = study._replace(metrics=("dice_mean[fluorescence]", "dice_mean"), claims=())
    damaged((study, source), tmp_path)
    for row in ("unet_adam", "unet_wide"):
        path = tmp_path / row / "4/eval/test.json"
        test = json.loads(path.read_text())
        del test["per_stratum"]["fluorescence"]
        path.write_text(json.dumps(test))
    helpers.damage(tmp_path / "unet_wide/0", "gone")
    table, metric = collect(study, tmp_path), study.metrics[0]
    wide = row_of(table, "unet_wide")
    assert wide.gaps[metric] == Gaps(5, 0, 1, 1) and wide.gaps["dice_mean"] == Gaps(5, 0, 1)
    assert row_of(table, "unet_adam").gaps[metric] == Gaps(5, 0, 0, 1)
    assert wide.verdicts[metric] == "incomplete"
    assert next_step(table, row_of(table, "unet_adam")) == (
        "unet_adam has no dice_mean[fluorescence] in 1 of 5 repeats that ended, and further runs "
        "do not change that: judge by a metric, or on a split, that gives all of them a value")
    text = render.markdown(table) + summary_sentence(table) + " ".join(abstract(table))
    assert "1 missing, 1 undefined of 5" in text and "unet_adam: 1 of 5 undefined" in text
    assert "missing repeats have ended" not in text
    line = next(line for line in csv.DictReader(io.StringIO(table_csv.csv_text(table)))
                if (line["row"], line["metric"]) == ("unet_wide", metric))
    assert [line[key] for key in ("n", "repeats", "diverged", "missing", "undefined")] == [
        "3", "5", "0", "1", "1"]


def test_a_repeat_without_a_score_of_any_row_selects_none(done, tmp_path):
    """Its split has no image of the stratum: the other four decide, unless one row alone lacks."""
    study, source = done
    metric = "dice_mean[fluorescence]"
    study = study._replace(metrics=(metric,), margin={metric: 0.001}, claims=(
        studies.Claim("wide", ("unet_wide",), ("unet_adam",)),))
    damaged((study, source), tmp_path)
    def forget(row, repeat):
        path = tmp_path / row / f"{repeat}/eval/test.json"
        test = json.loads(path.read_text())
        del test["per_stratum"]["fluorescence"]
        path.write_text(json.dumps(test))
    for row in study.rows:
        forget(row, 4)
    table = collect(study, tmp_path)
    wide = row_of(table, "unet_wide")
    assert wide.gaps[metric] == Gaps(5, 0, 0, 1) and wide.compared[metric].n == 4
    assert wide.verdicts[metric] == "better" and wide.within[metric].word == "no worse"
    assert table.best[metric][0] == "unet_wide" and table.claims[0].judgement == "supported"
    assert next_step(table, wide).startswith("decided: better")
    assert "1 of 5 undefined" in render.markdown(table)
    assert {one.kind for one in pareto.points(table, metric, "train_seconds")} != {
        pareto.NOT_WHOLE}
    forget("unet_wide", 3)
    table = collect(study, tmp_path)
    assert row_of(table, "unet_wide").verdicts[metric] == "incomplete"
    assert table.best[metric][0] != "unet_wide" and table.claims[0].judgement == "undecided"


@pytest.mark.parametrize("why, level", [("split", 0.05), ("both bad", 0.06)])
def test_leaving_out_repeats_that_both_lack_keeps_the_level(why, level):
    """20,000 tables of two equal rows, a quarter of whose repeats are undefined together.

    Where it is because both do badly, what is left is not normal, and the test a little liberal.
    """
    rng, n, tables = np.random.default_rng(3), 6, 20000
    scores = rng.normal(0, 1, (2, tables, n))
    lost = rng.random((tables, n)) < 0.25 if why == "split" else (scores < 0).all(0)
    scores[:, lost] = math.nan
    d = scores[0] - scores[1]
    kept = np.isfinite(d).sum(1)
    d, kept = d[kept >= stats.MIN_PAIRS], kept[kept >= stats.MIN_PAIRS]
    t = np.nanmean(d, 1) / (np.nanstd(d, 1, ddof=1) / np.sqrt(kept))
    p = 2 * scipy_stats.t.sf(np.abs(t), kept - 1)
    assert p[:20] == pytest.approx([stats.paired(one, np.zeros(n)).p for one in d[:20]])
    assert np.mean(p < stats.ALPHA) <= scipy_stats.binom.ppf(0.999, len(p), level) / len(p)


def test_no_row_is_best_where_none_is_whole(done, tmp_path):
    table = damaged(done, tmp_path, unet_wide={0: "gone"}, unet_sgd={1: "non-finite"},
                    unet_adam={2: "unfinished"})
    assert "dice_mean" not in table.best
    assert ("No row can be called best: none has a score of all its repeats."
            in render.markdown(table))


def test_a_claim_is_contradicted_by_whole_rows_only(done, tmp_path):
    study, source = done
    claim = studies.Claim("wide is worse", ("unet_adam",), ("unet_wide",))
    study = study._replace(claims=(claim,))
    assert damaged((study, source), tmp_path / "a").claims[0].judgement == "contradicted"
    table = damaged((study, source), tmp_path / "b", unet_wide={1: "non-finite"})
    assert table.claims[0].judgement == "undecided"
    assert "not before all have a score (unet_wide: 1 of 5 diverged)" in render.markdown(table)
    # The side that loses may lack some.
    table = damaged((study, source), tmp_path / "c", unet_adam={1: "non-finite"})
    assert table.claims[0].judgement == "contradicted"


# --- coverage -------------------------------------------------------------------------------------


def change_images(folder, change):
    file = folder / "eval/test_images.csv"
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    with open(file, "w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(change(rows))


def test_images_scored_twice_or_not_at_all_are_named(done, tmp_path):
    damaged(done, tmp_path)
    change_images(tmp_path / "unet_sgd/1", lambda rows: [*rows, rows[2]])
    change_images(tmp_path / "unet_wide/0", lambda rows: rows[1:])
    notes = collect(done[0], tmp_path).notes
    assert len(notes) == 2
    assert ("unet_sgd/1 has 1 of its 6 test images more than once in test_images.csv, such as "
            "'field_0002.png'") in notes[0]
    assert ("unet_wide/0 was scored on 5 images and unet_adam/0 on 6, with 5 in common"
            ) in notes[1]


def test_rows_of_one_config_are_named(done, tmp_path):
    study, _ = done
    twin = study._replace(rows={**study.rows, "again": study.rows["unet_sgd"]})
    damaged(done, tmp_path)
    shutil.copytree(tmp_path / "unet_sgd", tmp_path / "again")
    assert any("unet_sgd, again have the same config: they are one row under 2 names" in note
               for note in collect(twin, tmp_path).notes)


# --- how often it is wrong ------------------------------------------------------------------------




def table_words(scores, lost):
    """(tables, rows - 1) of: the survivors' word, and the word of the rule, as +1, 0, -1.

    Args:
      scores: (tables, rows, repeats), lost: which diverged. All in numpy; the first tables are
        compared with the functions of the package below.
    """
    d = np.where(lost[:, 1:] | lost[:, :1], np.nan, scores[:, 1:] - scores[:, :1])
    n = np.isfinite(d).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(d, -1) / n
        sd = np.sqrt(np.nansum((d - mean[..., None]) ** 2, -1) / (n - 1))
        p = 2 * scipy_stats.t.sf(np.abs(mean) / (sd / np.sqrt(n)), n - 1)
    p[n < stats.MIN_PAIRS] = np.nan
    adjusted = np.apply_along_axis(stats.holm, -1, p)
    plain = np.where(adjusted < stats.ALPHA, np.sign(mean), 0).astype(int)
    gap = lost.any(-1)
    blocked = ((plain > 0) & gap[:, 1:]) | ((plain < 0) & gap[:, :1])
    return plain, np.where(blocked, 0, plain), adjusted


def check_words(scores, lost, plain, ruled, adjusted):
    """The simulation judges as the package does."""
    for t in range(20):
        for r in range(1, scores.shape[1]):
            values = [np.where(lost[t, k], np.nan, scores[t, k]) for k in (r, 0)]
            word = stats.verdict(stats.paired(*values), adjusted[t, r - 1])
            sides = [Gaps(scores.shape[-1], int(lost[t, k].sum())) for k in (r, 0)]
            sign = {"better": 1, "worse": -1}
            assert sign.get(word, 0) == plain[t, r - 1]
            assert sign.get(limited(word, *sides), 0) == ruled[t, r - 1]


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rows, repeats, share", [(2, 5, 0.1), (6, 5, 0.3), (6, 10, 0.1)])
def test_equal_rows_that_diverge_seldom_have_a_verdict(rows, repeats, share, tables):
    """Repeats diverge at random: survivors are no selection, and the rule errs on the safe side."""
    rng = np.random.default_rng(20)
    scores = rng.normal(0.8, 0.01, (tables, rows, repeats))
    lost = rng.random(scores.shape) < share
    found = table_words(scores, lost)
    check_words(scores, lost, *found)
    limit = scipy_stats.binom.ppf(0.999, tables, 0.05) / tables
    assert np.mean((found[1] != 0).any(-1)) <= limit


@pytest.mark.parametrize("tables", [1000, pytest.param(20000, marks=pytest.mark.slow)])
def test_a_row_that_loses_its_bad_runs_is_not_better(tables):
    """The same method, but each run of one row that would score below average diverges.

    Judged by its survivors it is "better" in more than a tenth of the tables; by the rule in none
    but those where all its runs ended.
    """
    rng = np.random.default_rng(21)
    scores = rng.normal(0.8, 0.01, (tables, 2, 10))
    lost = np.zeros(scores.shape, bool)
    lost[:, 1] = scores[:, 1] < 0.8
    plain, ruled, adjusted = table_words(scores, lost)
    check_words(scores, lost, plain, ruled, adjusted)
    assert np.mean(plain > 0) > 0.1
    assert np.mean(ruled > 0) <= scipy_stats.binom.ppf(0.999, tables, 0.5**10) / tables


@pytest.mark.parametrize("tables", [200, pytest.param(20000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("repeats, shared", [(5, 0.0), (5, 0.8), (7, 0.0)])
def test_readings_by_rank_keep_their_level(repeats, shared, tables):
    """Independent repeats, or pairs that share most of their luck; a fifth diverges."""
    rng = np.random.default_rng(22)
    luck = rng.normal(0, math.sqrt(shared), (tables, 1, repeats))
    scores = luck + rng.normal(0, math.sqrt(1 - shared), (tables, 2, repeats))
    lost = rng.random(scores.shape) < 0.2
    both = np.where(lost, WORSE, scores).reshape(tables, -1)
    ranks = scipy_stats.rankdata(both, axis=-1)
    chosen = np.array(list(itertools.combinations(range(2 * repeats), repeats)))
    centre = repeats * (2 * repeats + 1) / 2
    seen = np.abs(ranks[:, :repeats].sum(-1) - centre)
    p = np.zeros(tables)
    for part in np.array_split(np.arange(tables), max(1, tables // 500)):
        sums = ranks[part][:, chosen].sum(-1)
        p[part] = np.mean(np.abs(sums - centre) >= seen[part, None] - 1e-9, -1)
    for t in range(10):
        one = by_rank(*both[t].reshape(2, -1))
        assert one.p == pytest.approx(p[t])
    assert np.mean(p < stats.ALPHA) <= scipy_stats.binom.ppf(0.999, tables, 0.05) / tables
