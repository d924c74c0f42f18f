"""What to do next about a row, and which rows are worth their cost."""

import shutil

import helpers_study as helpers
import numpy as np

from cellseg_jax.report import front_chart
from cellseg_jax.report.row_charts import MARKERS
from cellseg_jax.studies import pareto, stats
from cellseg_jax.studies.equivalence import Posterior, Within
from cellseg_jax.studies.output.next_step import next_step
from cellseg_jax.studies.table import collect


def row_of(table, name):
    return next(row for row in table.rows if row.name == name)


def with_values(table, name, values, **margin):
    """The table with other scores of a row, compared anew by itself."""
    base = row_of(table, table.study.baseline).values["dice_mean"]
    one = stats.paired(values, base)
    row = row_of(table, name)
    row = row._replace(compared=row.compared | {"dice_mean": one}, verdicts=row.verdicts | {
        "dice_mean": stats.verdict(one, one.p)}, within={})
    return table._replace(study=table.study._replace(margin=margin), rows=[
        row if other.name == name else other for other in table.rows]), row


def test_a_verdict_needs_nothing_more(table):
    assert next_step(table, row_of(table, "unet_wide")).startswith("decided: better, with ")
    assert next_step(table, row_of(table, "otsu")).startswith("decided: worse, with 0 against")
    assert next_step(table, row_of(table, "unet_adam")) == ""


def test_below_the_noise_floor_the_cheaper_is_chosen(table):
    base = row_of(table, "unet_adam").values["dice_mean"]
    spread = np.array([-1, 1, -1, 1, 0.4]) * 0.004
    found, row = with_values(table, "unet_sgd", base + spread)
    text = next_step(found, row)
    assert "is below the noise floor of" in text and "choose the cheaper" in text
    assert "more repeat" not in text  # nobody asked for equality
    low, high = row.compared["dice_mean"].interval
    assert f"unless a difference from {low:+.2g} to {high:+.2g} matters" in text
    found, row = with_values(table, "unet_sgd", base + spread, dice_mean=0.02)
    assert "1 more repeat of both shows that they are equal within 0.02" in next_step(found, row)


def test_repeats_that_decide_are_those_of_the_power(table):
    base = row_of(table, "unet_adam").values["dice_mean"]
    spread = np.array([-1, 1.2, -1, 1, 0]) * 0.012
    found, row = with_values(table, "unet_sgd", base + 0.01 + spread)
    one = row.compared["dice_mean"]
    needed = stats.repeats_needed(stats.sd_of(one), abs(one.difference), alpha=0.05 / 5)
    assert row.verdicts["dice_mean"] == "not distinguishable"
    assert next_step(found, row).startswith(f"{needed - 5} more repeats of both rows decide it")
    never = found._replace(test_train_ratio=2.0)
    assert next_step(never, row) == "no number of repeats decides it: that takes more images"


def test_a_row_that_is_the_baseline_over_again_takes_no_more_images(table):
    """Equal to the last digit in all repeats: not a difference that is hard to see."""
    base = row_of(table, "unet_adam").values["dice_mean"]
    found, row = with_values(table, "unet_sgd", base.copy())
    assert row.verdicts["dice_mean"] == "not distinguishable"
    text = next_step(found, row)
    assert text.startswith("equal in all 5 repeats to the last digit: choose the cheaper")
    assert "more images" not in text


def test_a_cheaper_row_that_is_no_worse_is_chosen(table):
    """That is what a margin is stated for; a dearer one gets the repeats that would decide it."""
    base = row_of(table, "unet_adam").values["dice_mean"]
    level = base + np.array([0.004, -0.003, 0.002, 0.005, -0.001])
    found, row = with_values(table, "unet_sgd", level)
    within = Within(0.01, 0.01, 0.3, Posterior(0, 0.9, 0.1), "no worse")
    minutes = row_of(table, "unet_adam").mean["train_seconds"]
    for word, factor in (("better", 0.5), ("worse", 2.0)):
        said = next_step(found, row._replace(
            within={"dice_mean": within}, verdicts=row.verdicts | {"train_seconds": word},
            mean=row.mean | {"train_seconds": factor * minutes}))
        assert said.startswith("no worse than by 0.01: choose it, the cheaper (minutes: ") == (
            word == "better"), said


def test_rows_that_lack_repeats_are_mended_first(runs, tmp_path):
    study, source = runs
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    helpers.damage(tmp_path / "unet_wide/1", "non-finite")
    helpers.damage(tmp_path / "unet_sgd/2", "gone")
    table = collect(study, tmp_path)
    assert next_step(table, row_of(table, "unet_wide")) == (
        "unet_wide: 1 of 5 runs diverged, the first after step 31: lower optimizer.lr, or set "
        "optimizer.clip, in a new row")
    assert next_step(table, row_of(table, "unet_sgd")) == (
        "run the missing repeats of unet_sgd: 1 of 5")
    helpers.damage(tmp_path / "unet_adam/0", "gone")
    table = collect(study, tmp_path)
    assert next_step(table, row_of(table, "otsu")).startswith(
        "run the missing repeats of unet_adam")


def test_confounded_rows_are_told_so(table):
    assert ("confounded, since it also differs in 1 key that it does not name"
            in next_step(table, row_of(table, "classic")))


# --- the Pareto front -----------------------------------------------------------------------------


def test_front_is_what_no_row_beats_by_brute_force(table):
    found = {one.name: one for one in pareto.points(table, "dice_mean", "train_seconds")}
    beaten = lambda a: any(  # costs within 5 % are one
        b.score > a.score and b.cost <= 1.05 * a.cost
        or b.score >= a.score and 1.05 * b.cost < a.cost for b in found.values())
    assert {n for n, one in found.items() if one.kind == pareto.FRONT} == {
        n for n, one in found.items() if not beaten(one)}
    assert found["unet_wide"].kind == found["otsu"].kind == pareto.FRONT
    # Worse, and no test shows that it costs more.
    assert found["unet_no_augment"].kind in (pareto.UNSURE, pareto.DOMINATED)


def test_dominated_takes_a_test_of_both(table):
    def kind(score, cost):
        rows = [row._replace(
            values=row.values | {"dice_mean": score + 0.001 * np.array([0, 1, -1, 2, 0.5]),
                                 "train_seconds": cost + np.array([0, 1, -1, 2, 0.3])},
            mean=row.mean | {"dice_mean": score, "train_seconds": cost})
            if row.name == "unet_sgd" else row for row in table.rows]
        return next(one.kind for one in pareto.points(
            table._replace(rows=rows), "dice_mean", "train_seconds") if one.name == "unet_sgd")
    assert kind(0.6, 1000.0) == pareto.DOMINATED
    best = row_of(table, "unet_wide")
    assert kind(0.6, best.mean["train_seconds"] + 0.01) in (pareto.DOMINATED, pareto.UNSURE)
    assert kind(0.99, 1.0) == pareto.FRONT


def test_rows_that_diverged_are_on_no_front(runs, tmp_path):
    study, source = runs
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    helpers.damage(tmp_path / "unet_wide/1", "non-finite")
    found = {one.name: one.kind for one in pareto.points(
        collect(study, tmp_path), "dice_mean", "train_seconds")}
    assert found["unet_wide"] == pareto.NOT_WHOLE


def test_front_chart_names_its_points_and_numbers_the_others():
    points = [("a", 1.0, 0.5, 0.01, MARKERS["up"], True), ("b", 100.0, 0.9, 0.01, MARKERS["up"],
                                                          True),
              ("c", 50.0, 0.4, float("nan"), MARKERS["circle"], False)]
    text = front_chart.front("t", ("minutes", "dice"), points)
    assert ">a</text>" in text and ">b</text>" in text and ">3</text>" in text
    assert 'class="front"' in text and "c minutes 50, dice 0.4" in text
    assert front_chart.front("t", ("x", "y"), []) == ""
    assert "NaN" not in text and "nan" not in text
