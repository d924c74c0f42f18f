"""A search: what is drawn, who is stopped, what the books say; the same after any kill."""

import json
import math
import random
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from helpers import child_environment, command, tiny_config
from scipy import stats as scipy_stats

from cellseg_jax import config as config_lib
from cellseg_jax import studies
from cellseg_jax.errors import InputError
from cellseg_jax.studies.search import optuna_sampler
from cellseg_jax.studies.search import plan as search_plan
from cellseg_jax.studies.search import space as search_space
from cellseg_jax.studies.search import trials as search
from cellseg_jax.studies.search.space import Search, choice, drawn, ints, log, uniform
from cellseg_jax.train import train
from cellseg_jax.train.rungs import Rungs

FILE = """
from cellseg_jax.config import default
from cellseg_jax.studies import choice, ints, log, rows, uniform

TITLE = "a rate"
BASE = default()
BASE.data = dict(name="synthetic", size=(32, 32), count=40)
BASE.model = dict(name="simple_conv")
BASE.train.epochs = 8
BASE.train.batch_size = 8
BASE.train.checkpoint_minutes = 1e-4
BASE.eval.batch_size = 8
BASE.eval.panels = 0
ROWS = {"base": {}}
SEARCH = {
    "space": {
        "optimizer.lr": log(1e-3, 1e-1),
        "augment": choice({"none": {}, "flip": {"augment.flip_horizontal": (0.5, 1.0)}}),
    },
    "trials": 8, "eta": 2, "rungs": 3}
REPEATS = 3
get_config = rows(BASE, ROWS)
"""


def load(tmp_path, text=FILE):
    path = tmp_path / "rate.py"
    path.write_text(text)
    return studies.load(path)


# --- what is drawn --------------------------------------------------------------------------------


def test_values_lie_in_their_ranges_and_spread_over_them():
    u = (np.arange(2000) + 0.5) / 2000
    at = lambda range_: [range_.at(x) for x in u]
    rates = np.array(at(log(1e-4, 1e-1)))
    assert rates.min() >= 1e-4 and rates.max() <= 1e-1
    assert abs(np.mean(rates < 10**-2.5) - 0.5) < 0.01  # as many below the middle of the logarithm
    assert np.bincount(at(ints(2, 5)))[2:].tolist() == [500] * 4
    sizes = np.bincount(at(ints(1, 7, log=True)))
    assert len(sizes) == 8 and (np.diff(sizes[1:]) < 0).all()  # P(n) = log((n + 1) / n) / log 8
    assert sizes[1] == pytest.approx(2000 / 3, abs=2)
    assert set(at(choice("adam", "sgd"))) == {"adam", "sgd"}
    assert all(float(f"{x:.4g}") == x for x in at(uniform(0.0, 0.3)))


def test_trials_are_distinct_and_follow_from_the_seed(tmp_path):
    base = load(tmp_path).base
    space = {"optimizer.lr": log(1e-4, 1e-1), "train.batch_size": choice(4, 8)}
    make = lambda seed, count, taken=(): drawn(Search(space, seed=seed), base, count, taken)
    first = make(0, 12)
    assert first == make(0, 12) and first != make(1, 12)
    assert make(0, 5, first[:7]) == first[7:]  # what was drawn before decides where it goes on
    assert len({repr(one) for one in first}) == 12
    small = Search({"train.batch_size": choice(4, 8), "optimizer.name": choice("adam", "sgd")})
    assert len(drawn(small, base, 10)) == 4


def test_trials_that_differ_in_what_their_model_lacks_are_one(tmp_path):
    base = load(tmp_path).base
    space = Search({"model.name": choice("simple_conv"), "model.dropout": choice(0.1, 0.2, 0.3)})
    assert len(drawn(space, base, 3)) == 1  # simple_conv has no dropout


@pytest.mark.parametrize("old, new, what", [
    ("log(1e-3, 1e-1)", "log(1e-1, 1e-3)", "low below high"),
    ("log(1e-3, 1e-1)", "log(0.0, 1e-3)", "above 0"),
    ("log(1e-3, 1e-1)", "(1e-3, 1e-1)", "expected log(low, high)"),
    ("log(1e-3, 1e-1)", "uniform(-1.0, 0.5)", "a learning rate above 0"),
    ('"optimizer.lr"', '"optimizer.learning_rate"', "did you mean config.optimizer.lr"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"train.epochs": ints(2, 8)', "sets train.epochs"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"data.split_seed": ints(2, 8)', "sets data.split_seed"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"seed": ints(2, 8)', "sets seed"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"data.size": choice((32, 32), (64, 64))',
     "sets data.size, without which trials compare"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"data.fit": choice("resize", "center_crop")',
     "sets data.fit"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"data.diameter": uniform(10.0, 20.0)',
     "sets data.diameter"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"data.looks": choice(("stained",), ("fluorescence",))',
     "sets data.looks"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"data.target": choice("foreground", "classes")',
     "sets data.target"),
    ('"optimizer.lr": log(1e-3, 1e-1)', '"train.batch_size": choice(8)', "two distinct choices"),
    ('"trials": 8', '"trails": 8', "did you mean trials"),
    ('"trials": 8', '"trials": 1', "at least 2"),
    ('"eta": 2', '"sampler": "grid"', "SEARCH: sampler"),
    ("count=40)", "count=40, split=(0.8, 0.0, 0.2))", "no validation images"),
])
def test_rejects_a_search_that_makes_no_sense(tmp_path, old, new, what):
    with pytest.raises(InputError) as error:
        load(tmp_path, FILE.replace(old, new))
    assert what in str(error.value)


@pytest.mark.parametrize("key, values", [
    ("data.target", ("foreground", "contour")), ("loss.dice", (0.5, 1.0))])
def test_keys_of_the_loss_are_searched_unless_it_is_what_trials_are_judged_by(
        tmp_path, key, values):
    text = FILE.replace('"optimizer.lr": log(1e-3, 1e-1)', f'"{key}": choice{values}')
    assert load(tmp_path, text).search.space[key].choices == values
    with pytest.raises(InputError, match=f"sets {key}, without which trials compare"):
        load(tmp_path, text.replace("ROWS =", 'BASE.train.best = ("loss", "min")\nROWS ='))


def test_rejects_a_search_of_a_study_without_one_and_rungs_without_validations(tmp_path):
    without = load(tmp_path)._replace(search=None)
    with pytest.raises(InputError, match="has no SEARCH; .* of cellseg_jax.studies$"):
        search.plan_of_study(without, "halving")
    found = load(tmp_path)
    with pytest.raises(InputError, match="--search: got 'asha'; expected one of halving"):
        search.plan_of_study(found, "asha")
    few = found._replace(search=found.search._replace(rungs=5))
    with pytest.raises(InputError, match="train.epochs of at least 16"):
        search.plan_of_study(few, "halving")
    rows = dict(found.rows)
    started = found._replace(rows=rows | {
        found.baseline: rows[found.baseline] | {"train.weights": "row:other"}, "other": {}})
    with pytest.raises(InputError, match="starts from the weights of row:other, a row that a sear"):
        search.plan_of_study(started, "halving")


# --- who trains for how long ----------------------------------------------------------------------


def plan(method, epochs=0, every=1, **options):
    return search_plan.plan_of(method, Search({}, **options), epochs, every)


def test_halving_costs_what_it_says():
    bracket, = plan("halving")
    assert bracket.kept == (27, 9, 3) and bracket.shares == pytest.approx((1 / 9, 1 / 3, 1))
    assert bracket.cost == pytest.approx(27 / 9 + 9 * 2 / 9 + 3 * 2 / 3)
    rounded, = plan("halving", epochs=10, every=2)  # validations after 2, 4, ... epochs
    assert rounded.shares == (0.2, 0.4, 1.0)


def test_random_search_gets_as_many_steps_as_halving():
    assert [one.kept for one in plan("random")] == [(7,)]
    assert [one.kept for one in plan("random", sampler="optuna")] == [(4,), (3,)]
    assert plan("halving", trials=486, rungs=4)[0].cost == pytest.approx(54)


def test_hyperband_begins_later_with_fewer_trials():
    brackets = plan("hyperband")
    assert [one.kept for one in brackets] == [(27, 9, 3), (14, 4), (9,)]
    assert [one.shares[0] for one in brackets] == pytest.approx([1 / 9, 1 / 3, 1])


def test_survivors_are_the_best_and_of_equal_ones_the_first():
    scores = {0: 0.5, 1: 0.7, 2: 0.7, 3: math.nan, 4: -math.inf, 5: 0.6}
    assert search_plan.survivors(scores, 2) == [1, 2]
    assert search_plan.survivors(scores, 9) == [1, 2, 5, 0]
    assert search_plan.cut_among_equals(scores, [1]) and not search_plan.cut_among_equals(
        scores, [1, 2]) and not search_plan.cut_among_equals(scores, [])


def test_score_at_is_the_best_so_far_at_the_first_validation_after_the_share(tmp_path):
    config = config_lib.changed(tiny_config(), {"train.epochs": 9})
    lines = [{"step": 4 * e, "epoch": float(e), "val_dice_mean": score, "train_loss": 0.1}
             for e, score in ((1, 0.2), (2, 0.6), (3, 0.4), (6, 0.7))]
    lines.insert(2, {"step": 10, "epoch": 2.5, "train_loss": 0.1})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 30, "ep')
    at = lambda share: search.score_at(tmp_path, config, share)
    assert at(1 / 9) == (4, pytest.approx(0.2)) and at(1 / 3) == (12, pytest.approx(0.6))
    assert at(0.5) == (24, pytest.approx(0.7)) and at(1.0) is None
    for status, score in (("stopped early", 0.7), ("non-finite", -math.inf)):
        (tmp_path / "result.json").write_text(json.dumps({"status": status, "step": 28}))
        assert at(1.0) == (28, pytest.approx(score))
    loss = config_lib.changed(config, {"train.best": ("loss", "min")})
    (tmp_path / "metrics.jsonl").write_text("".join(
        json.dumps({"step": 4 * e, "epoch": float(e), "val_loss": x}) + "\n"
        for e, x in ((1, 0.5), (2, float("nan")), (3, 0.4))))
    assert search.score_at(tmp_path, loss, 2 / 9) == (8, pytest.approx(-0.5))


def test_the_books_are_of_one_search_and_say_what_was_drawn(tmp_path):
    found, folder = load(tmp_path), tmp_path / "halving"
    books = search.Books(found, folder, "halving", False)
    trials = books.begin_bracket(0, 4)
    for n, trial in enumerate(trials):
        trial["rungs"].append({"rung": 0, "share": 0.25, "step": 8, "decision": "stopped",
                               "score": None if n == 2 else 0.5 + n / 100})
    books.write()
    kept = json.loads((folder / "books.json").read_text())
    assert kept["steps"] == 32 and [one["trial"] for one in kept["trials"]] == [
        "t000", "t001", "t002", "t003"]
    lines = (folder / "books.csv").read_text().splitlines()
    assert lines[0] == ("trial,bracket,seed,split_seed,rung,share,step,decision,score,"
                        "optimizer.lr,augment")
    assert len(lines) == 5 and lines[1].endswith(("none", "flip"))
    again = search.Books(found, folder, "halving", False)
    assert [one["values"] for one in again.begin_bracket(0, 4)] == [
        one["values"] for one in trials]
    with pytest.raises(InputError, match="no trial ended with a finite dice_mean"):
        books.winner()
    other = found._replace(search=found.search._replace(eta=3))
    with pytest.raises(InputError, match="holds a search with another search"):
        search.Books(other, folder, "halving", False)


# --- the winner -----------------------------------------------------------------------------------


def test_re_runs_have_seeds_and_splits_that_the_search_did_not_use(tmp_path):
    found = load(tmp_path)
    rerun = search.rerun_study(found, {"optimizer.lr": 0.02, "augment": (
        "flip", {"augment.flip_horizontal": (0.5, 1.0)})})
    assert list(rerun.rows) == ["base", "found"] and rerun.baseline == "base"
    config = studies.config_of(rerun, "found", 2)
    assert (config.optimizer.lr, config.augment.flip_horizontal) == (0.02, (0.5, 1.0))
    assert (config.seed, config.data.split_seed) == (search.FRESH + 2, search.FRESH + 2)
    base = studies.config_of(rerun, "base", 2)
    assert config_lib.diff(base, config).keys() == {"optimizer.lr", "augment.flip_horizontal"}
    official = found._replace(base=config_lib.changed(found.base, {"data.split": "official"}))
    assert search.rerun_study(official, {}).varies == ("seed",)


def search_result(**changes):
    return {"method": "halving", "trials": 8, "stopped": 6, "steps": 80, "winner": "t003",
            "values": {"optimizer.lr": 0.02}, "metric": "val_dice_mean", "search_score": 0.85,
            "rerun_scores": [0.83, 0.84], "rerun_mean": 0.835, "rerun_sd": 0.007,
            "rerun_diverged": 0, "optimism": 0.015, "same_split": False} | changes


def test_sentences_state_the_optimism():
    text = " ".join(search.sentences(search_result()))
    assert "8 trials, 6 of them stopped" in text and "optimizer.lr=0.02" in text
    assert "0.8500" in text and "0.8350 ± 0.0070" in text and "+0.0150" in text
    assert "had a part in the search" in text
    assert "no trial was judged on" in " ".join(search.sentences(search_result(same_split=True)))


def test_sentences_name_re_runs_that_diverged_and_hold_for_losses():
    text = " ".join(search.sentences(search_result(
        metric="val_loss", search_score=0.2, rerun_mean=0.3, optimism=0.1, rerun_diverged=1)))
    assert "2 re-runs with fresh seeds and splits have 0.3000 ± 0.0070, without 1 that diverged" \
        in text
    assert "by how much its score is better than theirs, is +0.1000" in text  # 0.2 minus 0.3


def selected(rng, tables, trials, images, *, image_sd, run_sd, repeats=5):
    """(tables, repeats) re-run winner minus baseline, all trials being one method.

    Each trial has its own luck with each image; the winner is the best on the validation images of
    the search, and is re-run on test images drawn anew from the same pool.
    """
    own = rng.normal(0, image_sd, (tables, trials, images))
    tenth = images // 10
    score = own[..., :tenth].mean(-1) + rng.normal(0, run_sd, (tables, trials))
    winner = np.take_along_axis(own, score.argmax(1)[:, None, None], 1)[:, 0]
    base = rng.normal(0, image_sd, (tables, images))
    drawn_images = np.argsort(rng.random((tables, repeats, images)), -1)[..., :tenth]
    test = lambda x: np.take_along_axis(x[:, None], drawn_images, -1).mean(-1)
    runs = rng.normal(0, run_sd, (2, tables, repeats))
    return test(winner) + runs[0] - test(base) - runs[1]


@pytest.mark.parametrize("tables", [500, pytest.param(20000, marks=pytest.mark.weekly)])
def test_a_search_among_equals_seldom_finds_a_better_one(tables):
    """Although the test images of re-runs were in part validation images of the search."""
    rng, better = np.random.default_rng(5), []
    for _ in range(tables // 500):
        d = selected(rng, 500, 27, 100, image_sd=0.05, run_sd=0.005)
        t = d.mean(-1) / (d.std(-1, ddof=1) * math.sqrt(1 / 5 + 1 / 8))
        better.append(np.mean((2 * scipy_stats.t.sf(np.abs(t), 4) < 0.05) & (t > 0)))
    assert np.mean(better) <= scipy_stats.binom.ppf(0.999, tables, 0.05) / tables


# --- Optuna ---------------------------------------------------------------------------------------


def books_of(folder, found):
    return types.SimpleNamespace(trials=[], study=found, folder=folder, sign=1.0)


def proposed(folder, found, *, interrupted):
    """Values of two batches of four trials; the better the nearer the rate is to 0.01."""
    books, out = books_of(folder, found), []
    for batch in range(2):
        if interrupted:  # asked for, then ended before anything was known
            optuna_sampler.asked(books, 2 + batch)
        values = optuna_sampler.asked(books, 4)
        new = [{"trial": f"t{len(out) + n:03d}", "values": one, "rungs": [
            {"share": 1.0 if n % 2 else 0.5, "step": 8, "score": -abs(math.log(
                one["optimizer.lr"] / 0.01)) if n else None}]} for n, one in enumerate(values)]
        out += values
        books.trials += new
        optuna_sampler.tell(books, new)
        optuna_sampler.tell(books, new)  # as after a kill: what is known stays
    return out


@pytest.mark.slow
def test_optuna_proposes_the_same_after_any_end(tmp_path):
    pytest.importorskip("optuna")
    found = load(tmp_path, FILE.replace('"rungs": 3', '"rungs": 3, "sampler": "optuna"'))
    one, other = (proposed(tmp_path / name, found, interrupted=name == "b") for name in "ab")
    assert one == other and len({repr(values) for values in one}) == 8
    for values in one:
        assert 1e-3 <= values["optimizer.lr"] <= 1e-1
        assert values["augment"] in found.search.space["augment"].choices
        search_space.changes_of(values, found.base)


def test_a_missing_optuna_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    found = load(tmp_path, FILE.replace('"rungs": 3', '"rungs": 3, "sampler": "optuna"'))
    with pytest.raises(InputError, match=r"pip install cellseg_jax\[search\]"):
        optuna_sampler.asked(books_of(tmp_path, found), 1)


# --- trained from rung to rung --------------------------------------------------------------------


@pytest.mark.slow
def test_runs_that_pause_end_as_if_they_never_had_and_compile_once(tmp_path):
    configs = [tiny_config(optimizer__lr=lr, train__epochs=4) for lr in (1e-3, 3e-3, 1e-2)]
    folders = [tmp_path / "paused" / str(n) for n in range(3)]
    rungs = Rungs(configs, folders, backend="unroll", slots=2)
    ended = rungs.train({0: 0.2, 1: 0.2, 2: 0.2})
    assert {one.status for one in ended.values()} == {"paused"}
    assert {one.step for one in ended.values()} == {4}  # the first validation, after one epoch
    (states, *_), = (programs[0] for programs in rungs._programs.values())
    compiled = states.compiled
    ended = rungs.train({0: 0.5, 2: 0.5})
    assert {n: (one.status, one.step) for n, one in ended.items()} == {
        0: ("paused", 8), 2: ("paused", 8)}
    assert rungs.train({2: 1.0})[2].status == "done" and states.compiled is compiled
    assert not (folders[0] / "result.json").exists()

    whole = tmp_path / "whole"
    train(configs, [whole / str(n) for n in range(3)], backend="unroll", slots=2)
    log = lambda folder: (folder / "metrics.jsonl").read_text().splitlines()
    assert log(folders[2]) == log(whole / "2")
    assert log(folders[0]) == log(whole / "0")[:2] and log(folders[1]) == log(whole / "1")[:1]


FILES = ("books.json", "books.csv", "result.json")


def searched(file, workdir):
    return subprocess.Popen(
        command("study", f"--study={file}", f"--workdir={workdir}", "--search=halving",
                "--backend=unroll", "--slots=2"), env=child_environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines_in(workdir):
    return sum(path.read_text().count("\n") for path in logs_in(workdir))


def logs_in(workdir):
    return [path for folder in ("trials/*", "rerun/*/*")
            for path in workdir.glob(f"search/halving/{folder}/metrics.jsonl")]


@pytest.mark.weekly
def test_killed_at_random_moments_it_has_the_same_books_and_winner(tmp_path):
    file = tmp_path / "rate.py"
    file.write_text(FILE)
    undisturbed, killed, rng = tmp_path / "undisturbed", tmp_path / "killed", random.Random(1)
    assert searched(file, undisturbed).wait() == 0
    total = lines_in(undisturbed)
    kills = 0
    while kills < 20:
        process = searched(file, killed)
        # At any moment after some progress: in training, saving, deciding, scoring.
        wanted = lines_in(killed) + rng.randint(0, total // 20)
        while process.poll() is None and lines_in(killed) < wanted:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5) if wanted else rng.uniform(0, 8))
        if process.poll() is not None:
            assert process.returncode == 0
            break
        process.kill()
        process.wait()
        kills += 1
    assert kills >= 10, "ended too soon to show anything"
    assert searched(file, killed).wait() == 0
    for name in FILES:
        a, b = ((folder / "search/halving" / name).read_bytes() for folder in (undisturbed, killed))
        assert a == b, name
    logs = {path.relative_to(undisturbed) for path in logs_in(undisturbed)}
    assert logs == {path.relative_to(killed) for path in logs_in(killed)}
    for log_file in logs:
        assert (undisturbed / log_file).read_text() == (killed / log_file).read_text(), log_file
