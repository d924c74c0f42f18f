"""All keys in which a row differs from the baseline, and which of them it does not name."""

import json

import helpers_study as helpers
import numpy as np
import pytest

from cellseg_jax import config as config_lib
from cellseg_jax import studies
from cellseg_jax.studies.confounders import (
    FOLLOWS,
    IMAGES,
    NAMED,
    NOT_NAMED,
    STEPS,
    differences,
    not_named,
)
from cellseg_jax.studies.output import render
from cellseg_jax.studies.table import collect


def why(rows, row, baseline="base", found=None, **changes):
    """{key: why} of a row."""
    study = helpers.make_study(rows=rows, baseline=baseline, claims=(), reference={}, **changes)
    return {one.key: one.why for one in differences(study, row, found or {})}


def test_named_keys_are_all_there_is():
    rows = {"base": {}, "sgd": {"optimizer.name": "sgd", "optimizer.lr": 1e-2}}
    assert why(rows, "sgd") == {"optimizer.name": NAMED, "optimizer.lr": NAMED}
    assert why(rows, "base") == {}


def test_what_the_baseline_alone_changes_is_not_named():
    rows = {"base": {"optimizer.lr": 1e-2}, "sgd": {"optimizer.name": "sgd"}}
    assert why(rows, "sgd") == {"optimizer.name": NAMED, "optimizer.lr": NOT_NAMED}


def test_a_named_key_with_the_value_of_the_baseline_is_no_difference():
    rows = {"base": {}, "same": {"optimizer.lr": helpers.make_study().base.optimizer.lr}}
    assert why(rows, "same") == {}


def test_another_model_brings_its_own_options_and_defaults():
    """Base has narrow channels; the other network comes at its full width, without dropout."""
    found = why({"base": {}, "classic": {"model.name": "unet_classic"}}, "classic")
    assert found["model.name"] == NAMED and found["model.norm"] == FOLLOWS
    assert found["model.num_res_units"] == FOLLOWS  # which the other one has not
    assert found["model.channels"] == found["model.dropout"] == NOT_NAMED


def test_losses_of_a_named_target_follow_from_it():
    found = why({"base": {}, "flow": {"data.target": "flow"}}, "flow")
    assert found["data.target"] == NAMED and found["loss.mse"] == FOLLOWS
    assert NOT_NAMED not in found.values()
    # A loss of the baseline's own row is none of that target.
    rows = {"base": {"loss.pos_weight": 3.0}, "flow": {"data.target": "flow"}}
    assert why(rows, "flow")["loss.pos_weight"] == NOT_NAMED
    rows = {"flow": {"data.target": "flow"}, "flow_2": {"optimizer.lr": 1e-2}}
    found = why(rows, "flow_2", baseline="flow")
    assert found["data.target"] == found["loss.mse"] == NOT_NAMED


def test_what_nothing_reads_does_not_confound():
    rows = {"base": {"optimizer.lr": 1e-2, "augment.noise": (0.5, 0.1)}, "otsu": {
        "model.name": "otsu"}}
    assert NOT_NAMED not in why(rows, "otsu").values()
    rows = {"base": {"data.threads": 3, "data.cache": "x"}, "other": {"optimizer.lr": 1.0}}
    assert why(rows, "other") == {"optimizer.lr": NAMED}


@pytest.mark.parametrize("baseline, row", [("ours", "peer"), ("peer", "ours")])
def test_labels_of_another_tool_do_not_confound_and_their_cost_is_not_known(
        baseline, row, tmp_path):
    rows = {"ours": {}, "peer": {"labels": str(tmp_path)}}
    assert NOT_NAMED not in why(rows, row, baseline=baseline).values()
    study = helpers.write_study(tmp_path, helpers.make_study(
        rows=rows, baseline=baseline, claims=(), reference={}), images=4)
    means = {one.name: one.mean["train_seconds"] for one in collect(study, tmp_path).rows}
    assert np.isnan(means["peer"]) and means["ours"] > 0


def test_images_and_steps_follow_or_confound(tmp_path):
    rows = {"base": {}, "half": {"data.train_fraction": 0.5}, "rate": {"optimizer.lr": 1e-4}}
    study = helpers.write_study(tmp_path, helpers.make_study(
        rows=rows, baseline="base", claims=(), reference={}, repeats=1), images=4)
    for row, images, steps in (("half", 10, 60), ("rate", 20, 100)):
        folder = tmp_path / row / "0"
        split = json.loads((folder / "split.json").read_text())
        (folder / "split.json").write_text(json.dumps(
            split | {"train": split["train"][:images]}))
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"step": steps}))
    table = collect(study, tmp_path)
    of = {row.name: {one.key: one.why for one in row.differs} for row in table.rows}
    assert of["half"] == {"data.train_fraction": NAMED, IMAGES: FOLLOWS, STEPS: FOLLOWS}
    assert of["rate"] == {"optimizer.lr": NAMED, IMAGES: NOT_NAMED, STEPS: NOT_NAMED}
    text = render.markdown(table)
    assert "| rate‡ |" in text and "| half |" in text and "‡ marks confounded rows" in text
    assert r"rate$^\ddagger$" in render.latex(table)
    assert ("confounded: training images 20 (baseline 32); optimizer steps 100 (baseline 120)"
            in text)


def test_all_keys_of_both_configs_are_compared():
    """The keys by their configs, for a row that names its diameter, and not its target."""
    study, row = studies.load("configs/studies/instances_cpu.py"), "unet_classic_flow_diameter"
    study = study._replace(rows={**study.rows, row: {"data.diameter": 30.0}})
    found = differences(study, row, {})
    mine, base = (config_lib.flatten(studies.config_of(study, name, 0))
                  for name in (row, study.baseline))
    assert {one.key for one in found} == {k for k in {**mine, **base} if mine.get(k) != base.get(k)}
    assert [line.split()[0] for line in not_named(found)] == [
        "data.target", "loss.bce", "loss.dice", "loss.focal", "loss.mse"]


@pytest.mark.parametrize("row", ["unet_wide", "otsu"])
def test_rows_that_change_one_thing_are_not_confounded(row, tmp_path):
    table = collect(helpers.make_study(), tmp_path)
    assert not not_named(next(one for one in table.rows if one.name == row).differs)


def test_repeats_with_other_numbers_of_images_do_not_confound(tmp_path):
    """Folds differ by an image: a row that lacks its first repeat has no other training set."""
    rows = {"base": {}, "rate": {"optimizer.lr": 1e-4}}
    study = helpers.write_study(tmp_path, helpers.make_study(
        rows=rows, baseline="base", claims=(), reference={}, repeats=2), images=4)
    for row in rows:
        file = tmp_path / row / "1/split.json"
        split = json.loads(file.read_text())
        file.write_text(json.dumps(split | {"train": split["train"][1:]}))
    helpers.damage(tmp_path / "rate/0", "gone")
    assert not not_named(collect(study, tmp_path).rows[1].differs)
