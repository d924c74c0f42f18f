"""Five sentences that are never more certain than the verdicts, and a paragraph of methods."""

import re
import shutil

import helpers_study as helpers
import numpy as np

from cellseg_jax.studies import stats
from cellseg_jax.studies.equivalence import Posterior, Within
from cellseg_jax.studies.output.abstract import abstract
from cellseg_jax.studies.output.methods import methods
from cellseg_jax.studies.table import collect


def with_words(table, words):
    """The table with {row: verdict, or "equal" or "no worse"} in the headline metric."""
    def of(row):
        word = words.get(row.name, "")
        if not word:
            return row
        within = Within(0.01, 0.01, 0.01, Posterior(0, 1, 0), "not shown")
        if word in ("equal", "no worse"):
            within, word = within._replace(word=word), "not distinguishable"
        return row._replace(verdicts=row.verdicts | {"dice_mean": word},
                            within={"dice_mean": within})
    return table._replace(rows=[of(row) for row in table.rows])


def test_there_are_five_sentences_whatever_there_is(runs, table, tmp_path):
    study, folder = runs
    for one in (table, collect(study, tmp_path / "none"), collect(study, folder, rows=()),
                collect(study._replace(repeats=1), folder, repeats=1)):
        sentences = abstract(one)
        assert len(sentences) == 5
        for text in sentences:
            assert text.endswith(".") and ". " not in text and "nan" not in text
            assert text[0].isupper() or text[0].isdigit()


def test_of_one_setting_alone_nothing_is_to_be_judged(table):
    _, better, rest, *_ = abstract(table._replace(rows=table.rows[:1]))
    assert better == "With one setting alone nothing is judged."
    assert rest == "There is no other setting."


def test_words_are_those_of_the_verdicts(table):
    """Every assignment of words to rows that was drawn: a row is called what its verdict says."""
    rng, names = np.random.default_rng(0), [row.name for row in table.rows[1:]]
    said = {"better": r"Shown to be better than unet_adam: (.*)\.",
            "worse": r"worse than it \((.*?)\)", "equal": r"equal to it within 0.01 \((.*?)\)",
            "not distinguishable": r"not told apart from it \((.*?), which shows no equality\)",
            "no worse": r"told apart from it and no worse than by 0.01 \((.*?)\)",
            "diverged": r"since trainings diverged \((.*?)\)"}
    every = [*stats.VERDICTS, "equal", "no worse"]
    for _ in range(60):
        words = dict(zip(names, rng.choice(every, len(names)), strict=True))
        _, better, rest, *_ = abstract(with_words(table, words))
        for word, pattern in said.items():
            found = re.search(pattern, better if word == "better" else rest)
            chosen = [name for name in names if words[name] == word]
            assert bool(found) == bool(chosen), (words, better, rest)
            if found and word != "better":
                assert found[1].split(", ") == chosen[:4] or "more" in found[1]
        assert ("better" in better.replace("No setting is shown to be better", "")) == (
            "better" in words.values())


def test_best_is_claimed_only_if_it_beats_each_other(table):
    alone = table._replace(best={"dice_mean": ("unet_wide", ())})
    assert abstract(alone)[4] == ("The choice is unet_wide, which is better than each other "
                                  "setting.")
    tied = table._replace(best={"dice_mean": ("unet_wide", ("unet_sgd",))})
    assert abstract(tied)[4].startswith("No setting is shown to be best; unet_wide has the best "
                                        "mean")
    assert abstract(table._replace(best={}))[4] == (
        "No setting can be recommended before all repeats of one have a score.")
    level = tied._replace(best={"dice_mean": ("unet_wide", ("unet_sgd", "unet_adam"))}, rows=[
        row._replace(values=row.values | {"dice_mean": tied.rows[0].values["dice_mean"]})
        if row.name == "unet_wide" else row._replace(
            mean=row.mean | {"train_seconds": np.nan} if row.name == "unet_adam" else row.mean)
        for row in tied.rows])
    assert "of 2 of known cost among the 3 that are not told apart" in abstract(level)[4]


def test_what_limits_it_is_named(table):
    text = abstract(table)[3]
    assert "by chance" in text and "not for other images" in text
    assert "classic differs from the baseline in more than is named" in text


def test_methods_name_data_splits_seeds_tests_and_versions(runs, table, tmp_path):
    study, folder = runs
    text = methods(table)
    for part in ("Images are of synthetic, 48 for training, 6 for validation, 6 for testing",
                 "one random split of cases for all runs (seed 0)", "32x32 pixels", "unet_adam",
                 "adam at a learning rate of 0.005", "1 dice, 1 focal", "5 times",
                 "seed from 0 to 4",
                 "dice_mean (2TP/(2TP+FP+FN)", "a paired t-test, two-sided, with Holm's correction",
                 "within 0.01 in dice_mean", "at commit 0123456789", "Python 3.11.2", "jax 0.10.2"):
        assert part in text, part
    assert "diverged, and" not in text and "nan" not in text
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    helpers.damage(tmp_path / "unet_wide/1", "non-finite")
    text = methods(collect(study, tmp_path))
    assert "1 run diverged, and 0 runs had no score. Beside it, all repeats were compared by a " \
        "rank-sum test" in text
    assert methods(collect(study, tmp_path / "none")) == (
        "No run has ended: there is nothing to report yet.")


def test_methods_describe_the_baseline_and_no_other_row(runs, tmp_path):
    study, source = runs
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    helpers.damage(tmp_path / "unet_adam/0", "gone")
    helpers.damage(tmp_path / "unet_adam/1", "non-finite")
    text = methods(collect(study, tmp_path, repeats=3))
    assert "6 for testing in repeat 1" in text  # of the first run that there is
    assert "trained 3 times, with seed from 0 to 2" in text  # 5 in the file
    shutil.rmtree(tmp_path / "unet_adam")
    assert methods(collect(study, tmp_path)) == (
        "The baseline unet_adam has no run with the config that it has now: there is nothing to "
        "report yet.")


def test_methods_say_no_training_where_there_is_none(runs, tmp_path):
    study, folder = runs
    text = methods(collect(study._replace(baseline="otsu"), folder))
    assert "The baseline otsu is otsu, which is not trained; " in text
    assert "was to be run 5 times" in text and "epochs" not in text
    study = study._replace(rows={"unet_adam": {"train.early_stopping": 9}}, claims=(), repeats=1)
    helpers.write_study(tmp_path, study, images=4)
    assert "trained for at most 100 epochs with early stopping in batches" in methods(
        collect(study, tmp_path))
