"""The study command: what it runs, in which shares, what it leaves, and what it says."""

import json
import signal
import subprocess
import time

import pytest
from helpers import ROOT, child_environment, command, tiny_config
from helpers_study import table_without_costs

from cellseg_jax import cli, studies, study
from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.files import owner
from cellseg_jax.runs.lock import Lock
from cellseg_jax.studies import command as command_lib
from cellseg_jax.studies import cost as cost_lib
from cellseg_jax.studies import launch
from cellseg_jax.train import measure
from cellseg_jax.train.result import Result

FILE = """
from cellseg_jax.config import default
from cellseg_jax.studies import Claim, rows

TITLE = "rates and networks"
BASE = default()
BASE.data = dict(name="synthetic", size=(32, 32), count=40)
BASE.model = dict(name="simple_conv")
BASE.train.epochs = 2
BASE.train.batch_size = 8
BASE.eval.batch_size = 8
BASE.eval.panels = 0
ROWS = {
    "base": {},
    "slow": {"optimizer.lr": 1e-4},
    "wide": {"model.name": "unet", "model.channels": (4, 8)},
}
REFERENCE = {"base": {"dice_mean": 0.5}}
CLAIMS = (Claim("a low rate is worse", "base", "slow"),)
REPEATS = 2
VARIES = ("seed", "data.split_seed")
get_config = rows(BASE, ROWS)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rates.py"
    path.write_text(FILE)
    return path


def run(*arguments):
    """The exit code of the command in this process; signals are what they were afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return cli.run_command(study.main, study.define_flags, ["study", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)


def changed_times(folder):
    return {p: p.stat().st_mtime_ns for name in ("metrics.jsonl", "eval/test.json", "result.json")
            for p in folder.glob(f"*/*/{name}")}


@pytest.mark.parametrize("text, expected", [("", (0, 1)), ("0/4", (0, 4)), ("3/4", (3, 4)),
                                            ("any", None)])
def test_tasks(text, expected):
    assert command_lib.task_of(text) == expected


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/3", "1/0"])
def test_tasks_that_are_none(text):
    with pytest.raises(InputError, match="--task: got .*; expected i/n"):
        command_lib.task_of(text)


def test_rows_are_chosen_by_name_and_pattern_in_the_order_of_the_study():
    rows = {"b": {}, "unet_a": {}, "unet_b": {}, "a": {}}
    assert command_lib.chosen_rows("a, unet_*", rows) == ["unet_a", "unet_b", "a"]
    with pytest.raises(InputError, match="--rows: no row 'unet_c'; did you mean unet_"):
        command_lib.chosen_rows("unet_c", rows)


@pytest.mark.parametrize("arguments, message", [
    ([], "--study: missing"),
    (["--study=nothing.py"], "no file 'nothing.py'"),
    (["--study=FILE", "--config=x.py"], "--config: a study has its own config"),
    (["--study=FILE", "--repeats=-1"], "--repeats: got -1"),
    (["--study=FILE", "--measure=20"], "--measure: nothing reads it without --dry_run"),
    (["--study=FILE", "--measure=-1", "--dry_run"], "--measure: got -1"),
    (["--study=FILE", "--backend=lop"], "--backend: got 'lop'; expected one of loop, unroll"),
    (["--study=FILE", "--rows=,"], "--rows: got ','; expected names of rows"),
    (["--study=FILE", "--workdir=FILE"], "is a file; expected a folder"),
    (["--study=FILE", "--rows=bose"], "--rows: no row 'bose'; did you mean base?"),
    (["--study=FILE", "--collect", "--workdir=nowhere"], "--workdir: no folder nowhere"),
    (["--study=FILE", "--config.train.epoks=3"], "did you mean config.train.epochs?"),
])
def test_bad_input_is_one_line(file, capsys, arguments, message):
    assert run(*(a.replace("FILE", str(file)) for a in arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines


@pytest.mark.slow
def test_a_study_runs_is_done_and_grows(file, tmp_path, capsys):
    folder = tmp_path / "rates"
    assert run(f"--study={file}", f"--workdir={folder}") == 0
    said = capsys.readouterr()
    assert "6 of 6 runs to do, in 2 programs" in said.err
    for row in ("base", "slow", "wide"):
        for repeat in "01":
            for name in ("result.json", "eval/test.json", "report.html", "config.json"):
                assert (folder / row / repeat / name).exists()
    for name in ("table.csv", "table.md", "table.tex", "report.html"):
        assert (folder / name).stat().st_size > 100
    assert "too few repeats" in said.out and "a low rate is worse" in said.out
    table, before = (folder / "table.csv").read_text(), changed_times(folder)
    assert run(f"--study={file}", f"--workdir={folder}") == 0  # nothing is left to do
    assert "0 of 6 runs to do" in capsys.readouterr().err
    assert changed_times(folder) == before and (folder / "table.csv").read_text() == table
    assert run(f"--study={file}", f"--workdir={folder}", "--repeats=3", "--rows=slow,base") == 0
    assert "2 of 6 runs to do, in 1 program" in capsys.readouterr().err
    assert changed_times(folder).items() >= before.items()
    # what decides scores alone is scored anew, and not trained
    assert run(f"--study={file}", f"--workdir={folder}", "--config.eval.surface=1") == 0
    assert "6 of 6 runs to do" in capsys.readouterr().err
    assert "surface_dice" in (folder / "slow/0/eval/test.json").read_text()
    # a row that now says something else is not mixed with what it said before
    file.write_text(FILE.replace("1e-4", "2e-4"))
    assert run(f"--study={file}", f"--workdir={folder}") == 2
    assert "row slow, repeat 0: --workdir" in (error := capsys.readouterr().err)
    assert "optimizer.lr was 0.0001, is 0.0002" in error


@pytest.mark.slow
@pytest.mark.parametrize("task", [(), ("--task=any",)])
def test_what_a_kill_after_the_scores_left_is_mended(file, tmp_path, task):
    file.write_text(FILE.replace('"simple_conv"', '"otsu"'))
    folder = tmp_path / "rates"
    arguments = (f"--study={file}", f"--workdir={folder}", "--rows=base", "--repeats=1", *task)
    assert run(*arguments) == 0
    scores = (folder / "base/0/eval/test.json").stat().st_mtime_ns
    (folder / "base/0/report.html").unlink()
    dead = f"{owner()[:8]}-4194305.tmp"
    for left in (folder / f"base/0/report.html.{dead}", folder / f"table.csv.{dead}"):
        left.touch()
    assert run(*arguments) == 0
    assert (folder / "base/0/report.html").exists() and not list(folder.rglob("*.tmp"))
    assert (folder / "base/0/eval/test.json").stat().st_mtime_ns == scores


def test_after_an_interruption_nothing_is_scored(monkeypatch, tmp_path):
    results = [Result(str(tmp_path), "done", 4, {}), Result(str(tmp_path), "interrupted", 2, {})]
    monkeypatch.setattr(launch.train, "train", lambda *_, **__: results)
    monkeypatch.setattr(launch.evaluate, "evaluate", None)  # a call would be an error
    runs = [launch.PlannedRun(tiny_config(), tmp_path / str(r)) for r in range(2)]
    assert launch.train_and_score(runs) == {"done", "interrupted"}


@pytest.mark.slow
def test_a_row_starts_from_the_same_repeat_of_another_row(file, tmp_path, capsys):
    file.write_text(FILE.replace('"slow": {', '"second": {"train.weights": "row:base", '
                                 '"optimizer.lr": 1e-30, "optimizer.weight_decay": 0.0},\n'
                                 '    "slow": {'))
    folder = tmp_path / "rates"
    assert run(f"--study={file}", f"--workdir={folder}", "--rows=second,base") == 0
    assert "in 2 programs" in capsys.readouterr().err  # the rows differ in values alone
    scores = {row: [json.loads((folder / row / r / "eval/test.json").read_text())["metrics"]
                    for r in "01"] for row in ("base", "second")}
    assert scores["base"] == scores["second"] and scores["base"][0] != scores["base"][1]


@pytest.mark.slow
def test_tasks_share_the_runs_and_a_bad_row_stops_no_other(file, tmp_path, capsys):
    file.write_text(FILE.replace('"slow": {', '"pretrained": {"train.weights": "gone.pt"},\n'
                                 '    "slow": {'))
    folder = tmp_path / "rates"
    codes = [run(f"--study={file}", f"--workdir={folder}", f"--task={i}/4") for i in range(4)]
    assert codes == [0, 2, 0, 0]
    said = capsys.readouterr().err
    assert said.count("gone.pt") == 1 and "not run, 2 of 2: pretrained/0, pretrained/1" in said
    assert not (folder / "table.csv").exists()
    assert run(f"--study={file}", f"--workdir={folder}", "--collect") == 0
    said = capsys.readouterr().out
    assert "pretrained" in said and "missing" in said.lower()
    results = sorted(str(p.parent.relative_to(folder)) for p in folder.rglob("result.json"))
    assert results == [f"{row}/{k}" for row in ("base", "slow", "wide") for k in "01"]


@pytest.mark.slow
def test_a_run_that_another_process_has_is_left_to_it(file, tmp_path, capsys):
    folder = tmp_path / "rates"
    arguments = (f"--study={file}", f"--workdir={folder}", "--rows=base,slow")
    with Lock(folder / "slow" / "1"):
        assert run(*arguments) == 75
    assert "slow/1 is in use by pid" in (said := capsys.readouterr().err)
    assert "start again when they have ended" in said
    assert run(*arguments) == 0
    assert "1 of 4 runs to do" in capsys.readouterr().err


def test_a_single_run_that_another_process_has_is_no_bad_input(tmp_path, capsys):
    config = tiny_config()
    config.model = dict(name="otsu")
    failed, one = {}, launch.PlannedRun(config_lib.complete(config), tmp_path / "otsu" / "0")
    with Lock(one.folder):
        assert launch.train_program([one], failed, "", 0) == {"in use"}
    assert failed == {} and "otsu/0 is in use by pid" in capsys.readouterr().err


@pytest.mark.weekly
def test_stopped_and_killed_a_study_ends_with_the_same_table(file, tmp_path):
    start = lambda name: subprocess.Popen(
        command("study", f"--study={file}", f"--workdir={tmp_path / name}",
                "--config.train.epochs=30"), cwd=ROOT,
        env=child_environment(), stdout=open(tmp_path / "log", "a"), stderr=subprocess.STDOUT)
    assert start("whole").wait(300) == 0, (tmp_path / "log").read_text()
    codes = []
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        process = start("cut")
        before = len(changed_times(tmp_path / "cut")) if (tmp_path / "cut").exists() else 0
        while process.poll() is None and len(changed_times(tmp_path / "cut")) <= before:
            time.sleep(0.05)
        process.send_signal(number)
        codes.append(process.wait(120))
    assert codes == [75, -signal.SIGKILL, 75]
    assert start("cut").wait(300) == 0, (tmp_path / "log").read_text()
    scores = [table_without_costs(tmp_path / name) for name in ("whole", "cut")]
    assert scores[0] == scores[1] and len(scores[0]) > 4


@pytest.mark.slow
def test_dry_run_names_programs_runs_and_hours(file, tmp_path, capsys):
    assert run(f"--study={file}", f"--workdir={tmp_path / 'none'}", "--dry_run", "--task=0/2") == 0
    said = "".join(capsys.readouterr())
    assert "2 programs to compile, 6 runs, about" in said and "a task of 2" in said
    assert said.count("by FLOPs") == 2 and "--measure=20 measures" in said
    assert run(f"--study={file}", f"--workdir={tmp_path / 'none'}", "--dry_run", "--measure=1") == 0
    said = "".join(capsys.readouterr())
    assert "measured" in said and "rough" not in said
    assert not (tmp_path / "none").exists()


def test_a_grid_of_8192_points_is_estimated_from_a_sample(monkeypatch):
    monkeypatch.setattr(measure, "convolution_gflop_per_second", lambda: 10.0)
    monkeypatch.setattr(cost_lib, "SAMPLED", 3)
    table = studies.load(ROOT / "configs/studies/small_unet_grid.py")
    ahead = cost_lib.estimate(table, repeats=1)
    assert (ahead.programs, ahead.runs, len(ahead.costs)) == (512, 8192, 3)
    by_hand = 512 / 3 * sum(c.runs * c.steps * c.seconds for c in ahead.costs) / 3600
    assert ahead.hours == pytest.approx(by_hand)
    assert any("3 of 512" in note for note in ahead.notes)
    assert any("rough" in note and "--measure" not in note for note in ahead.notes)
    assert not any(c.measured for c in ahead.costs)


@pytest.mark.slow
def test_a_learning_curve_is_fitted_to_nested_shares(file, tmp_path, capsys):
    text = FILE.replace("import Claim, rows", "import fractions, rows")
    text = text.replace('"slow": {"optimizer.lr": 1e-4},',
                        '**fractions({"conv": {"optimizer.lr": 1e-3}}, (0.25, 0.5, 1)),')
    text = text.replace('CLAIMS = (Claim("a low rate is worse", "base", "slow"),)',
                        'LEARNING_CURVE = {"metric": "dice_mean", "targets": (0.9,)}')
    file.write_text(text.replace("batch_size = 8", "batch_size = 4"))
    folder = tmp_path / "rates"
    assert run(f"--study={file}", f"--workdir={folder}", "--rows=conv_*") == 0
    assert "conv: dice_mean 0.90 " in capsys.readouterr().out
    assert "## Learning curve of conv" in (folder / "table.md").read_text()
    lines = (folder / "learning_curve.csv").read_text().splitlines()
    assert sum(",run," in line for line in lines) == 6
    splits = [json.loads((folder / f"conv_{share}/0/split.json").read_text())
              for share in ("0.25", "0.5", "1")]
    assert [len(split["train"]) for split in splits] == [8, 16, 32]
    assert set(splits[0]["train"]) < set(splits[1]["train"]) < set(splits[2]["train"])
    assert splits[0]["test"] == splits[1]["test"] == splits[2]["test"]
