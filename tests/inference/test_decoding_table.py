"""Several decodings of one prediction, side by side."""

import json

import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax import cli, main, train
from cellseg_jax import config as config_lib
from cellseg_jax.inference import tune
from cellseg_jax.inference.decoding_table import DecodingTable, decodings
from cellseg_jax.inference.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classical run, which decodes as a network of the foreground target does."""
    folder = tmp_path_factory.mktemp("decodings")
    config = tiny_config(data__cache=str(folder), data__split=(0.5, 0.0, 0.5), data__count=12)
    config = config_lib.changed(config, {"model.name": "otsu"})
    train.train([config], [folder / "run"])
    return config, folder / "run"


def test_each_decoding_is_named_once_the_scored_one_first(run):
    config, folder = run
    found = decodings(Predictor(folder, config))
    assert list(found) == ["watershed", "components"]
    assert set(found["watershed"]) == {"decode", "threshold", "watershed_h", "min_size"}
    other = config_lib.changed(config, {"eval.min_size": 7})
    found = decodings(Predictor(folder, other))
    assert list(found) == ["watershed", "components", "config of the run"]
    assert [one["min_size"] for one in found.values()] == [7, 7, 0]


def test_rows_are_scores_of_their_decoding(run):
    config, folder = run
    predictor = Predictor(folder, config)
    table = DecodingTable(predictor)
    label = np.zeros((20, 40), int)
    y, x = np.ogrid[:20, :40]
    label[(y - 10) ** 2 + (x - 11) ** 2 < 81] = 1
    label[(y - 10) ** 2 + (x - 27) ** 2 < 81] = 2
    probs = (label > 0)[..., None].astype(np.float32)
    counts = tune.metrics.instance_counts(label, predictor.decode(probs))
    table.add(label, probs, counts)
    watershed, components = table.rows()
    assert watershed["name"] == "watershed" and watershed["ap50"] == 1
    assert components["options"]["decode"] == "components" and components["ap50"] < 1


def test_an_evaluation_has_the_table(run, capsys):
    _, folder = run
    assert cli.run_command(main.main, main.define_flags, [
        "main", "--mode=eval", f"--workdir={folder}"]) == 0
    scores = json.loads((folder / "eval/test.json").read_text())
    first, second = scores["decoding"]
    assert first["ap50"] == scores["metrics_original_size"]["ap50"]
    assert (first["name"], second["name"]) == ("watershed", "components")
    assert "by decoding, at the original size" in capsys.readouterr().out
    assert "<h2" in (page := (folder / "report.html").read_text()) and "Decodings" in page
