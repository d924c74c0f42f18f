"""Every row of every shipped study trains, is evaluated and stands in the study's table."""

import csv
import json
import shutil
import subprocess

import pytest
from helpers import ROOT, child_environment, command

from cellseg_jax import studies

# Two repeats share a program; the other studies have one, since the rows are what differs.
REPEATS = {"nuclei": 2, "small_unet": 1, "ebhi": 1, "em": 1, "livecell": 1, "learning_curve": 1}


@pytest.mark.weekly
@pytest.mark.parametrize("name", REPEATS)
def test_every_row_of_every_study_runs_on_twins(name, tmp_path):
    result = subprocess.run(
        command("study", f"--study=configs/studies/{name}.py", "--smoke",
                f"--repeats={REPEATS[name]}", f"--workdir={tmp_path}"),
        cwd=ROOT, env=child_environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    table = studies.load(ROOT / f"configs/studies/{name}.py")
    for row in table.rows:
        for repeat in range(REPEATS[name]):
            scores = json.loads((tmp_path / row / str(repeat) / "eval/test.json").read_text())
            assert scores["metrics"]
    with open(tmp_path / "table.csv") as file:
        assert {line["row"] for line in csv.DictReader(file)} == set(table.rows)
    assert "too few repeats" in result.stdout
    shutil.rmtree(tmp_path)
