"""Pruning over repeats of rows: means and spreads by hand, and which row loses more."""

import csv

import numpy as np
import pytest

from cellseg_jax.errors import InputError
from cellseg_jax.files import write_csv
from cellseg_jax.studies import pruned_rows, stats


def make_row(folder, lost, classes=("all", "Polyp"), masks=2):
    """Runs whose Dice of a class falls from 0.9 by `lost[repeat]` per level; classes differ."""
    for repeat, step in enumerate(lost):
        run = folder / str(repeat)
        (run / "analysis/pruning").mkdir(parents=True)
        (run / "config.json").write_text("{}")
        write_csv(run / pruned_rows.SCORES_FILE, [
            {"experiment": "l1_layers:all", "layer": "all", "level": level,
             "sparsity": f"{0.25 * level:.4f}", "mask": mask, "class": name,
             "dice": 0.9 - step * level * (1 + k) + 0.01 * (mask - 0.5)}
            for level in range(3) for mask in range(masks) for k, name in enumerate(classes)])
    return [folder / str(repeat) for repeat in range(len(lost))]


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_rows_and_runs_of_equal_names_are_all_kept(tmp_path):
    """Repeats of two rows are both called 0; rows of two studies may share their name."""
    a, b = (make_row(tmp_path / study / "unet", (0.1, 0.2)) for study in ("one", "two"))
    rows = pruned_rows.rows_of([tmp_path / "one/unet", tmp_path / "two/unet"])
    assert rows == {"one/unet": a, "two/unet": b}
    rows = pruned_rows.rows_of([a[0], b[0], a[1], tmp_path / "one" / "unet" / "." / "1"])
    assert rows == {"one/unet/0": a[:1], "two/unet/0": b[:1], "one/unet/1": a[1:]}
    assert pruned_rows.rows_of([tmp_path / "two/unet"]) == {"unet": b}
    with pytest.raises(InputError, match="--workdir: no run in .*three"):
        pruned_rows.rows_of([tmp_path / "two/unet", tmp_path / "three"])


def test_means_and_spreads_equal_hand_values(tmp_path):
    runs = make_row(tmp_path / "a", (0.1, 0.2, 0.3))
    assert pruned_rows.runs_of(tmp_path / "a") == runs
    assert pruned_rows.runs_of(tmp_path / "a" / "1") == [tmp_path / "a" / "1"]
    assert pruned_rows.runs_of(tmp_path / "none") == [tmp_path / "none"]
    assert pruned_rows.write({"a": runs}, tmp_path) == []
    lines = {(line["class"], line["level"]): line for line in table(tmp_path / "pruning_rows.csv")}
    assert not (tmp_path / "pruning_rows_classes.csv").exists()  # one class alone
    assert len(lines) == 6 and not (tmp_path / "pruning_rows_compared.csv").exists()
    last = lines["all", "2"]
    assert float(last["sparsity"]) == 0.5 and last["repeats"] == "3"
    assert float(last["dice"]) == pytest.approx(0.9 - 0.4)
    assert float(last["dice_sd"]) == pytest.approx(np.std([0.7, 0.5, 0.3], ddof=1))
    assert float(lines["Polyp", "1"]["lost"]) == pytest.approx(0.4)
    assert (tmp_path / "pruning_rows.png").stat().st_size > 2000


@pytest.mark.parametrize("extra,expected", [
    ((0.10, 0.11, 0.09, 0.10, 0.1), "supported"), ((-0.10, -0.11, -0.09, -0.1, -0.1),
                                                   "contradicted"),
    ((0.1, -0.1, 0.05, -0.06, 0.01), "undecided")])
def test_a_row_that_loses_more_is_found_repeat_by_repeat(tmp_path, extra, expected):
    base = np.array((0.12, 0.15, 0.13, 0.2, 0.17))
    rows = {"plain": make_row(tmp_path / "plain", base),
            "simple": make_row(tmp_path / "simple", base + extra)}
    sentence, = pruned_rows.write(rows, tmp_path)
    line, other = table(tmp_path / "pruning_rows_compared.csv")
    assert (line["row"], line["base"], line["class"]) == ("simple", "plain", "all")
    assert line["judged"] == expected and sentence.endswith(f"is {expected}.")
    # The mean over levels 1 and 2 of what is lost more, repeat by repeat.
    slow = stats.paired(1.5 * (base + extra), 1.5 * base)
    assert float(line["lost_more"]) == pytest.approx(slow.difference)
    assert float(line["p"]) == pytest.approx(slow.p)
    assert float(line["p_adjusted"]) >= float(line["p"])
    assert other["class"] == "Polyp" and float(other["lost_more"]) == pytest.approx(
        2 * slow.difference)


def test_the_class_that_loses_first_is_found_over_repeats(tmp_path):
    steps = (0.10, 0.12, 0.09, 0.13, 0.11)
    runs = make_row(tmp_path / "a", steps, ("all", "Normal", "Polyp", "Adenocarcinoma"))
    pruned_rows.write({"a": runs}, tmp_path)
    lines = {line["class"]: line for line in table(tmp_path / "pruning_rows_classes.csv")}
    # A class loses 2, 3 or 4 steps at the first level.
    assert float(lines["Adenocarcinoma"]["lost_more"]) == pytest.approx(1.5 * np.mean(steps))
    assert float(lines["Normal"]["lost_more"]) == pytest.approx(-1.5 * np.mean(steps))
    assert float(lines["Polyp"]["lost_more"]) == pytest.approx(0, abs=1e-12)
    assert {name: line["judged"] for name, line in lines.items()} == {
        "Adenocarcinoma": "supported", "Normal": "contradicted", "Polyp": "undecided"}


def test_only_repeats_that_both_rows_have_are_compared(tmp_path):
    base = np.array((0.12, 0.15, 0.13, 0.2))
    rows = {"plain": make_row(tmp_path / "plain", base)[1:],
            "simple": make_row(tmp_path / "simple", base + (5, 0.1, 0.11, 0.09))}
    pruned_rows.write(rows, tmp_path)
    line = table(tmp_path / "pruning_rows_compared.csv")[0]
    assert line["repeats"] == "3" and float(line["lost_more"]) == pytest.approx(0.15)


def test_what_is_left_out_is_named(tmp_path):
    rows = {"plain": make_row(tmp_path / "plain", (0.12, 0.15, 0.13, 0.2)),
            "simple": make_row(tmp_path / "simple", (0.2, 0.22, 0.24))}
    lines = table(rows["plain"][1] / pruned_rows.SCORES_FILE)
    write_csv(rows["plain"][1] / pruned_rows.SCORES_FILE,
              [*lines, *(line | {"experiment": "random:all"} for line in lines)])
    assert pruned_rows.write(rows, tmp_path)[1:] == [
        "simple and plain are compared without repeats that only one of them has: 3.",
        "plain is shown without experiments that not all of its repeats have: random:all."]
