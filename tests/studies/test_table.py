"""The table of a study from its run folders: what counts, what is named, what is compared."""

import json
import math
import re
import shutil

import helpers_study as helpers
import numpy as np
import pytest
from scipy import stats as scipy_stats

from cellseg_jax import config as config_lib
from cellseg_jax import studies
from cellseg_jax.errors import InputError
from cellseg_jax.runs.resources import RESOURCES
from cellseg_jax.studies import pareto, stats
from cellseg_jax.studies.output import render
from cellseg_jax.studies.output.abstract import abstract
from cellseg_jax.studies.output.methods import methods
from cellseg_jax.studies.output.summary import summary_sentence
from cellseg_jax.studies.table import _best, collect


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(table, study, folder) of a study whose every run is done; not to be changed."""
    folder = tmp_path_factory.mktemp("study")
    study = helpers.write_study(folder)
    return collect(study, folder), study, folder


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory):
    study = helpers.make_study(rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_sgd")},
                               repeats=3, claims=(), reference={})
    folder = tmp_path_factory.mktemp("two_rows")
    return helpers.write_study(folder, study, images=6), folder


@pytest.fixture
def small(two_rows, tmp_path):
    """(study, folder) of two rows and three repeats, to be damaged."""
    study, folder = two_rows
    return study, shutil.copytree(folder, tmp_path / "small")


def row_of(table, name):
    return next(row for row in table.rows if row.name == name)


def test_numbers_are_those_of_the_files(whole):
    table, study, folder = whole
    tests = [json.loads((folder / f"unet_sgd/{r}/eval/test.json").read_text()) for r in range(5)]
    dice = [test["metrics"]["dice_mean"] for test in tests]
    row = row_of(table, "unet_sgd")
    assert row.values["dice_mean"].tolist() == dice
    assert row.mean["dice_mean"] == pytest.approx(np.mean(dice))
    assert row.sd["dice_mean"] == pytest.approx(np.std(dice, ddof=1))
    # Scores at data.size win; what only the original size has comes from there.
    assert row.runs[0].scores["seg"] == tests[0]["metrics_original_size"]["seg"]
    assert math.isnan(row.runs[0].scores["ap50"])
    assert row.runs[0].train_seconds == row.values["train_seconds"][0] > 0
    assert table.metrics == (*study.metrics, "train_seconds", "cpu_seconds", "peak_memory_gib",
                             "ms_per_image")
    assert table.missing == [] and row.reference == {"dice_mean": 0.82}


def test_comparisons_are_paired_by_repeat_and_adjusted_over_rows(whole):
    table = whole[0]
    base = row_of(table, "unet_adam").values["dice_mean"]
    others = [row for row in table.rows if row.name != "unet_adam"]
    raw = [scipy_stats.ttest_rel(row.values["dice_mean"], base).pvalue for row in others]
    assert [row.compared["dice_mean"].p for row in others] == pytest.approx(raw)
    assert [row.adjusted_p["dice_mean"] for row in others] == pytest.approx(stats.holm(raw))
    assert row_of(table, "unet_adam").compared["dice_mean"] is None
    words = {row.name: row.verdicts["dice_mean"] for row in table.rows}
    assert words == {"unet_adam": "", "unet_sgd": "not distinguishable", "unet_wide": "better",
                     "unet_no_augment": "worse", "otsu": "worse"}
    assert row_of(table, "unet_wide").verdicts["train_seconds"] == "worse"  # longer


def test_claims_are_judged_and_factors_averaged(whole):
    table = whole[0]
    assert [one.judgement for one in table.claims] == [
        "supported", "undecided", "contradicted", "supported"]
    values = {row.name: row.values["dice_mean"] for row in table.rows}
    factor = (values["unet_adam"] + values["unet_sgd"]) / 2
    assert table.claims[0].comparison == stats.paired(factor, values["unet_no_augment"])


def test_noise_floor_leaves_out_what_has_no_noise(whole):
    table = whole[0]
    learned = [row.values["dice_mean"] for row in table.rows if row.name != "otsu"]
    assert table.noise["dice_mean"] == stats.noise_floor(learned)
    assert table.noise["dice_mean"].n == 20
    needed = list(table.needed.values())
    assert needed == sorted(needed, reverse=True) and needed[-1] >= stats.MIN_PAIRS


def test_images_are_compared_in_groups(whole):
    table = whole[0]
    row = row_of(table, "unet_wide")
    one, seg = (row.per_image[m] for m in ("dice_mean", "seg"))
    assert one.n == 12 and "groups" in one.test  # 24 images, two of a case
    assert one.difference == pytest.approx(row.compared["dice_mean"].difference)
    assert seg.n == 12 and math.isfinite(seg.p)  # two of the images have none
    assert row.per_image["train_seconds"] is None


def test_best_row_has_to_beat_each_other(whole):
    table = whole[0]
    assert table.best["dice_mean"] == ("unet_wide", ())
    assert table.best["train_seconds"][0] == "otsu"


def test_equal_rows_seldom_have_a_best(whole):
    study, rng, wrong = whole[1], np.random.default_rng(0), 0
    row = row_of(whole[0], "unet_wide")
    for _ in range(400):
        values = rng.normal(0.8, 0.01, (3, 5))
        rows = [row._replace(name=name, values={"dice_mean": v}, mean={"dice_mean": v.mean()})
                for name, v in zip(study.rows, values, strict=False)]
        wrong += not _best(study, "dice_mean", rows, 0.0)[1]
    assert wrong <= scipy_stats.binom.ppf(0.999, 400, 0.05)


# --- what does not count -------------------------------------------------------------------------


@pytest.mark.parametrize("what, missing, note", [
    ("gone", "unet_sgd/1: no run", None),
    ("unfinished", "unet_sgd/1: unfinished, step 120", None),
    ("non-finite", "unet_sgd/1: loss or gradient not finite after step 31", None),
    ("truncated", None, r"unet_sgd/1 left out: .*test.json is damaged; restore it"),
    ("data", None, r"unet_sgd/1 left out: made with other data"),
])
def test_what_does_not_count_is_named(small, what, missing, note):
    study, folder = small
    helpers.damage(folder / "unet_sgd/1", what)
    table = collect(study, folder)
    row = row_of(table, "unet_sgd")
    assert np.isnan(row.values["dice_mean"]).tolist() == [False, True, False]
    assert np.isnan(row.values["train_seconds"]).tolist() == [False, True, False]
    assert row.compared["dice_mean"].n == 2 and row.verdicts["dice_mean"] == (
        "diverged" if what == "non-finite" else "too few repeats")
    assert table.missing == ([missing] if missing else [])
    assert len(table.notes) == bool(note) and all(re.match(note, line) for line in table.notes)


def test_rows_that_add_images_have_data_of_their_own(small):
    study, folder = small
    added = {"data.blank_images": 1}
    study = study._replace(rows={**study.rows, "unet_sgd": {**study.rows["unet_sgd"], **added}})
    for repeat in range(3):
        run = folder / f"unet_sgd/{repeat}"
        helpers.damage(run, "data")
        config = config_lib.changed(
            config_lib.from_json((run / "config.json").read_text()), added)
        (run / "config.json").write_text(config_lib.to_json(config))
        test = json.loads((run / "eval/test.json").read_text())
        test |= {"config_hash": config_lib.identity(config), "data_fingerprint": "cd" * 16}
        (run / "eval/test.json").write_text(json.dumps(test))
    table = collect(study, folder)
    assert not table.missing and not [note for note in table.notes if "left out" in note]
    assert row_of(table, "unet_sgd").compared["dice_mean"].n == 3


def test_any_damaged_file_is_one_note(small):
    study, folder = small
    study = study._replace(rows={"unet_adam": {}}, repeats=1)
    for name in ("config.json", "environment.json", "result.json", "eval/test.json", "split.json"):
        file = folder / "unet_adam/0" / name
        text = file.read_bytes()
        for content in (b"", b"[1]", text[: len(text) // 2], b"\xff\x00"):
            file.write_bytes(content)
            table = collect(study, folder, repeats=1)
            notes = [note for note in table.notes if "left out" in note]
            assert len(notes) == 1 and name in notes[0] and "\n" not in notes[0]
            assert table.rows[0].runs[0].mark == "damaged"
        file.write_bytes(text)


def test_damaged_image_scores_only_lose_the_images(small):
    study, folder = small
    file = folder / "unet_sgd/2/eval/test_images.csv"
    file.write_text(file.read_text()[:-3].rpartition(",")[0] + ",1e-")
    row = row_of(collect(study, folder), "unet_sgd")
    assert row.compared["dice_mean"].n == 3 and row.per_image["dice_mean"] is not None


def test_other_code_counts_and_is_marked(small):
    study, folder = small
    helpers.damage(folder / "unet_sgd/1", "code")
    table = collect(study, folder)
    assert [run.mark for run in row_of(table, "unet_sgd").runs] == ["", "other code", ""]
    assert row_of(table, "unet_sgd").compared["dice_mean"].n == 3
    assert any("unet_sgd/1 made by other code" in note for note in table.notes)


def test_a_study_of_older_code_says_so(small):
    study, folder = small
    for row in study.rows:
        for r in range(3):
            helpers.damage(folder / row / str(r), "code")
    table = collect(study, folder)
    assert [run.mark for row in table.rows for run in row.runs] == [""] * 6
    assert any("no run was made by this code" in note for note in table.notes)


def test_runs_of_another_config_are_left_out(small):
    study, folder = small
    changed = study._replace(rows={**study.rows, "unet_sgd": {
        "optimizer.name": "sgd", "optimizer.lr": 1e-2}})
    table = collect(changed, folder)
    assert [run.mark for run in row_of(table, "unet_sgd").runs] == ["other config"] * 3
    assert table.notes == ["unet_sgd/0, unet_sgd/1, unet_sgd/2 left out: made with another config "
                           "than the study has now: optimizer.lr was 0.005, is 0.01"]
    assert math.isnan(row_of(table, "unet_sgd").mean["dice_mean"])
    smoke = collect(study, folder, smoke=True)
    assert "train.epochs" in smoke.notes[0] and not any(
        run.counts for row in smoke.rows for run in row.runs)


def test_scores_by_other_eval_options_are_left_out(small):
    study, folder = small
    file = folder / "unet_sgd/0/eval/test.json"
    test = json.loads(file.read_text())
    test["eval_options"] |= {"threshold": 0.3, "batch_size": 99}
    file.write_text(json.dumps(test))
    table = collect(study, folder)
    assert table.notes == ["unet_sgd/0 left out: scored with eval.threshold 0.3, the study has "
                           "0.5; run the study again"]
    assert table.missing == ["unet_sgd/0: unfinished, step 120"]


def test_a_key_that_came_later_is_no_other_config(small):
    """Runs made before a default was added still count, and so do their scores."""
    study, folder = small
    file, scores = (folder / "unet_sgd/0" / name for name in ("config.json", "eval/test.json"))
    old, test = json.loads(file.read_text()), json.loads(scores.read_text())
    del old["train"]["early_stopping_mode"]
    file.write_text(json.dumps(old))
    scores.write_text(json.dumps(test | {"config_hash": config_lib.identity(old)}))
    assert row_of(collect(study, folder), "unet_sgd").runs[0].counts


def test_repeats_that_are_copies_are_named(small):
    study, folder = small
    text = (folder / "unet_sgd/0/eval/test.json").read_text()
    for r in (1, 2):
        changed = json.loads(text)
        changed["config_hash"] = json.loads(
            (folder / f"unet_sgd/{r}/eval/test.json").read_text())["config_hash"]
        (folder / f"unet_sgd/{r}/eval/test.json").write_text(json.dumps(changed))
    table = collect(study, folder)
    assert any("all repeats of unet_sgd have the same dice_mean" in note for note in table.notes)


# --- which rows and repeats ----------------------------------------------------------------------


def test_rows_and_repeats_are_chosen(whole):
    _, study, folder = whole
    table = collect(study, folder, rows=("otsu",), repeats=2)
    assert [row.name for row in table.rows] == ["unet_adam", "otsu"]  # with the baseline
    assert len(table.rows[0].runs) == 2
    assert "otsu has 3 more repeats than the 2 shown; --repeats=5 includes them" in table.notes
    with pytest.raises(InputError, match="--rows: got 'otsuu'.*did you mean otsu"):
        collect(study, folder, rows=("otsuu",))


def test_an_empty_folder_gives_an_empty_table(tmp_path):
    study = helpers.make_study()
    table = collect(study, tmp_path / "none")
    assert [row.name for row in table.rows] == list(study.rows)
    assert table.missing[0] == "unet_adam: no run" and len(table.missing) == 5
    assert {one.judgement for one in table.claims} == {"undecided"} and table.best == {}


def test_a_grid_of_thousands_with_few_runs_is_fast(tmp_path):
    grid = studies.Grid({"optimizer.lr": tuple(10.0**-i for i in range(1, 9)),
                           "train.batch_size": tuple(range(1, 129)),
                           "model.dropout": tuple(i / 10 for i in range(8))})
    first = next(iter(grid))
    study = helpers.make_study(rows=grid, baseline=first, claims=(), reference={}, repeats=2)
    one = study._replace(rows={first: grid[first]})
    helpers.write_study(tmp_path, one, images=4)
    table = collect(study, tmp_path)
    assert [row.name for row in table.rows] == [first] and len(table.missing) == 8191


# --- splits and losses ---------------------------------------------------------------------------


def test_overlapping_splits_are_corrected(tmp_path):
    study = helpers.make_study(varies=("seed", "data.split_seed"), repeats=4, claims=(),
                               rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_wide")})
    helpers.write_study(tmp_path, study, images=10)
    table = collect(study, tmp_path)
    assert table.test_train_ratio == pytest.approx(10 / 80)
    a, b = (row_of(table, name).values["dice_mean"] for name in ("unet_wide", "unet_adam"))
    assert row_of(table, "unet_wide").compared["dice_mean"] == stats.paired(
        a, b, test_train_ratio=1 / 8)
    # Images of all repeats, each once.
    assert 10 < row_of(table, "unet_wide").per_image["dice_mean"].n <= 40


def test_images_mixed_in_do_not_weaken_the_correction(tmp_path):
    """They are in every repeat's training part; test images are drawn against the others."""
    study = helpers.make_study(varies=("seed", "data.split_seed"), repeats=3, claims=(),
                               rows={k: helpers.ROWS[k] for k in ("unet_adam", "unet_wide")})
    helpers.write_study(tmp_path, study, images=10)
    for file in tmp_path.glob("*/*/split.json"):
        split = json.loads(file.read_text())
        split["train"] += [f"mixed/folder/{n}.png" for n in range(400)]
        file.write_text(json.dumps(split))
    assert collect(study, tmp_path).test_train_ratio == pytest.approx(10 / 80)


def test_equal_splits_are_not(whole, tmp_path):
    assert whole[0].test_train_ratio == 0
    study = helpers.make_study(varies=("seed", "data.split_seed"), repeats=3,
                               rows={"unet_adam": {}}, claims=(), reference={})
    helpers.write_study(tmp_path, study, images=4)
    text = (tmp_path / "unet_adam/0/split.json").read_text()
    for r in (1, 2):  # as the parts that a dataset has of its own
        (tmp_path / f"unet_adam/{r}/split.json").write_text(text)
    assert collect(study, tmp_path).test_train_ratio == 0


def test_scores_at_another_size_are_named_with_those_at_the_original(small):
    """Halved images have easier outlines: a row must not win by that without a word."""
    study, folder = small
    rows = {"unet_adam": {}, "half": {"data.size": (16, 16)}, "lr": {"optimizer.lr": 1e-4}}
    study = study._replace(rows=rows, metrics=("dice_mean", "seg"))
    helpers.write_study(folder / "sizes", study, images=6)
    table = collect(study, folder / "sizes")
    original = {row: np.mean([json.loads((folder / f"sizes/{row}/{r}/eval/test.json").read_text())[
        "metrics_original_size"]["dice_mean"] for r in range(3)]) for row in rows}
    note, = (one for one in table.notes if "do not compare" in one)
    assert note == (
        "dice_mean of half are of images with data.size (16, 16), not (32, 32) as in unet_adam: "
        "they do not compare, and have no verdict. At the original size dice_mean is "
        f"{original['half']:.3f} in half, {original['unet_adam']:.3f} in unet_adam; METRICS or a "
        "claim of 'dice_mean[original size]' has it judged")
    only_objects = study._replace(metrics=("seg",))  # which are scored at the original size
    assert not any("do not compare" in one for one in collect(
        only_objects, folder / "sizes").notes)


def test_a_mean_of_classes_beside_the_foreground_is_named(tmp_path):
    base = helpers.make_study().base
    base.data = {"name": "folder", "root": "x", "labels": "classes", "target": "classes",
                 "classes": ("tumour", "stroma"), "num_classes": 3}
    study = helpers.make_study(
        base=config_lib.complete(base), baseline="classes", repeats=3, claims=(), reference={},
        rows={"classes": {}, "tissue": {"data.target": "foreground"}, "lr": {"optimizer.lr": 1e-4}})
    table = collect(helpers.write_study(tmp_path, study, images=6), tmp_path)
    assert [note for note in table.notes if "do not compare" in note] == [
        "pixel scores such as dice_mean are the foreground as a whole in tissue and the mean of 2 "
        "classes in classes: they do not compare, and have no verdict"]
    tissue, lr = (row_of(table, name) for name in ("tissue", "lr"))
    assert tissue.verdicts["dice_mean"] == "" and lr.verdicts["dice_mean"] in stats.VERDICTS
    assert tissue.verdicts["seg"] in stats.VERDICTS  # of objects


def test_what_does_not_compare_wins_nothing(tmp_path):
    """A row that is scored on halved images leads by far: it is not better, best or dominating."""
    rows = {"unet_adam": {}, "half": {"data.size": (16, 16)}, "lr": {"optimizer.lr": 1e-4},
            "half_lr": {"data.size": (16, 16), "optimizer.lr": 1e-4}}
    claim = lambda *sides: studies.Claim("larger", *((side,) for side in sides))
    study = helpers.make_study(
        rows=rows, metrics=("dice_mean", "seg"), reference={}, margin={"dice_mean": 0.05},
        claims=(claim("half", "unet_adam"), claim("half", "half_lr"),
                claim("half", "unet_adam")._replace(metric="dice_mean[original size]")))
    effects = {"half": 0.1, "lr": -0.1}
    table = collect(helpers.write_study(tmp_path, study, effects=effects), tmp_path)
    half, lr = (row_of(table, name) for name in ("half", "lr"))
    assert half.mean["dice_mean"] > lr.mean["dice_mean"] + 0.15
    assert half.compared["dice_mean"] is None and "dice_mean" not in half.within
    assert (half.verdicts["dice_mean"], half.verdicts["seg"]) == ("", "better")
    assert lr.verdicts["dice_mean"] == "worse" and lr.within["dice_mean"].word == "not shown"
    assert table.best["dice_mean"] == ("unet_adam", ())
    assert {one.name for one in pareto.points(table, "dice_mean", "train_seconds")} == {
        "unet_adam", "lr"}
    assert [one.judgement for one in table.claims] == ["undecided", "supported", "supported"]
    text = " ".join(abstract(table))
    assert "shown to be better than" in text and "Shown to be better than" not in text
    assert "2 settings are not compared, since the score is of another loss, other pixels" in text
    assert "better than each other setting that is compared" in text
    assert "2 rows are not compared" in summary_sentence(table)
    assert "Not compared in dice_mean, which is of other pixels, classes" in methods(table)
    text = render.markdown(table)
    assert "| half | 0.89" in text and text.count("| - | not compared |") == 2
    assert "not compared: scores of other pixels or classes" in text
    assert "judge by dice_mean[original size], if pixels differ" in text
    original = collect(study._replace(metrics=("dice_mean[original size]",), margin={}), tmp_path)
    assert row_of(original, "half").verdicts["dice_mean[original size]"] == "better"
    assert row_of(original, "half").per_image["dice_mean[original size]"].p < 0.05
    assert original.definitions["dice_mean[original size]"].endswith("; at the original size")
    assert not any("do not compare" in note for note in original.notes)


def test_other_test_images_are_named(small):
    study, folder = small
    file = folder / "unet_sgd/1/split.json"
    split = json.loads(file.read_text())
    file.write_text(json.dumps(split | {"test": split["val"]}))
    assert collect(study, folder).notes == [
        "unet_sgd/1 tested on other images than the same repeat of unet_adam: their differences "
        "are of images too"]


def test_claims_on_costs_know_that_less_is_better(whole):
    _, study, folder = whole
    claims = [studies.Claim("wide takes longer", ("unet_adam",), ("unet_wide",), "train_seconds"),
              studies.Claim("no, it is fast", ("unet_wide",), ("unet_adam",), "train_seconds")]
    table = collect(study._replace(claims=tuple(claims)), folder)
    assert [one.judgement for one in table.claims] == ["supported", "contradicted"]


def test_ranking_by_losses_that_differ_is_refused(small):
    study, folder = small
    rows = {"unet_adam": {}, "unet_sgd": {"loss.dice": 0.0, "loss.bce": 1.0}}
    study = study._replace(rows=rows)
    with pytest.raises(InputError, match=r"METRICS ranks rows by loss, but rows differ in "
                                         r"loss.dice, loss.bce.*rank by a score"):
        collect(study._replace(metrics=("loss", "dice_mean")), folder)
    claim = studies.Claim("bce is lower", ("unet_sgd",), ("unet_adam",), "loss")
    with pytest.raises(InputError, match=r"CLAIMS\[0\] ranks rows by loss"):
        collect(study._replace(claims=(claim,)), folder)
    # As another column it is shown, and not ranked.
    helpers.write_study(folder / "bce", study._replace(metrics=("dice_mean", "loss")), images=6)
    table = collect(study._replace(metrics=("dice_mean", "loss")), folder / "bce")
    row = row_of(table, "unet_sgd")
    assert math.isfinite(row.mean["loss"]) and row.verdicts["loss"] == ""
    assert "loss" not in table.best


def test_losses_of_other_targets_are_other_losses(small):
    """Also where no key loss.* differs: the same function of another target."""
    study, folder = small
    study = study._replace(rows={"unet_adam": {}, "unet_sgd": {"data.target": "boundary"}})
    with pytest.raises(InputError, match="ranks rows by loss, but rows differ in data.target"):
        collect(study._replace(metrics=("loss",)), folder)
    study = study._replace(metrics=("dice_mean", "loss"))
    helpers.write_study(folder / "targets", study, images=6)
    table = collect(study, folder / "targets")
    assert row_of(table, "unet_sgd").verdicts["loss"] == "" and "loss" not in table.best
    assert row_of(table, "unet_sgd").verdicts["dice_mean"]


def test_equal_losses_may_rank(small):
    study, folder = small
    table = collect(study._replace(metrics=("loss",)), folder)
    row = row_of(table, "unet_sgd")
    assert row.verdicts["loss"] in stats.VERDICTS and table.best["loss"]
    assert stats.LOWER_IS_BETTER >= {"loss", *RESOURCES}


def test_unknown_metric_is_named_with_those_there_are(small):
    study, folder = small
    table = collect(study._replace(metrics=("dice",)), folder)
    assert any("no run has dice; there are ap50, dice_mean" in note for note in table.notes)


def test_scores_of_strata_classes_and_the_course_are_columns(two_rows):
    study, folder = two_rows
    metrics = ("dice_mean", "dice_mean[light]", "dice_mean[0]", "epochs_to_95", "val_loss_rise")
    strata = json.loads((folder / "unet_sgd/0/eval/test.json").read_text())["per_stratum"]
    stratum = next(iter(strata))
    metrics = tuple(m.replace("light", stratum) for m in metrics)
    claim = studies.Claim("one stratum is harder", ("unet_sgd",), ("unet_sgd",), metrics[1],
                          worse_metric="dice_mean")
    table = collect(study._replace(metrics=metrics, claims=(claim,)), folder)
    row = row_of(table, "unet_sgd")
    assert row.values[metrics[1]][0] == strata[stratum]["dice_mean"]
    assert row.values["dice_mean[0]"].tolist() == row.values["dice_mean"].tolist()
    epochs = [json.loads(line) for line in
              (folder / "unet_sgd/0/metrics.jsonl").read_text().splitlines()]
    best = max(line["val_dice_mean"] for line in epochs)
    first = next(line["epoch"] for line in epochs if line["val_dice_mean"] >= 0.95 * best)
    assert row.values["epochs_to_95"][0] == first
    assert table.definitions[metrics[1]].endswith(f"; of {stratum} alone")
    assert table.definitions["epochs_to_95"] and not table.notes
    assert table.claims[0].comparison == stats.paired(row.values[metrics[1]],
                                                      row.values["dice_mean"])


def test_course_of_losses_that_differ_is_not_ranked(small):
    study, folder = small
    rows = {"unet_adam": {}, "unet_sgd": {"loss.dice": 0.0, "loss.bce": 1.0}}
    claim = studies.Claim("", ("unet_sgd",), ("unet_adam",), "val_loss_rise")
    with pytest.raises(InputError, match=r"CLAIMS\[0\] ranks rows by val_loss_rise, but rows"):
        collect(study._replace(rows=rows, claims=(claim,)), folder)
    # A score of the course is of Dice, whatever the loss.
    collect(study._replace(rows=rows, claims=(claim._replace(metric="epochs_to_95"),)), folder)
