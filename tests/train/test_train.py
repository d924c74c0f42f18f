"""A whole run: what it leaves behind, that it resumes bit for bit, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import time
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import (
    assert_same_run,
    child_environment,
    command,
    interrupt_at_batch,
    run_command,
    tiny_config,
)

from cellseg_jax import cli, data, main, train
from cellseg_jax.errors import InputError
from cellseg_jax.files import read_json, read_jsonl
from cellseg_jax.inference import evaluate, measure
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs import lock as lock_lib
from cellseg_jax.runs.folder import ENVIRONMENT_FILE, RunFolder, read_config
from cellseg_jax.step.batches import eval_batches

CONFIG = """
from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(name="synthetic", size=(32, 32), count=40)
    config.model = dict(name="unet", channels=(4, 8), dropout=0.1)
    config.augment.turn = (0.5, 3.0)
    config.train.epochs = 6
    config.train.batch_size = 8
    config.train.log_gradients = True
    config.eval.batch_size = 8
    config.eval.panels = 2
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def test_run_leaves_the_promised_files(config_file, tmp_path):
    workdir = tmp_path / "run"
    arguments = ["main", f"--config={config_file}", f"--workdir={workdir}"]
    assert cli.run_command(main.main, main.define_flags, arguments) == 0
    for name in ("config.json", "environment.json", "metrics.jsonl", "timing.jsonl", "tensorboard",
                 "eval/test.json", "eval/test_images.csv", "report.html"):
        assert (workdir / name).exists(), name
    assert list((workdir / "eval/test_predictions").glob("*.png"))
    gradients = read_jsonl(workdir / "gradients.jsonl")
    assert len(gradients) == 6 and min(gradients[-1]["gradients"].values()) > 0
    lines = read_jsonl(workdir / "metrics.jsonl")
    assert [s["step"] for s in lines] == [4, 8, 12, 16, 20, 24]
    assert all(0 <= s[f"val_{name}_mean"] <= 1 for s in lines
               for name in ("dice", "accuracy", "precision", "recall"))
    scores = json.loads((workdir / "eval/test.json").read_text())
    assert scores["n_images"] == 4 and scores["metrics"].keys() >= {
        "dice_mean", "dice_pooled", "iou_mean"}
    best = max(lines, key=lambda s: s["val_dice_mean"])
    assert scores["checkpoint_step"] == best["step"]
    assert checkpoint.saved_steps(workdir / "checkpoints") == {"last": 24, "best": best["step"]}
    # started again it says that it is done and changes nothing
    before = (workdir / "metrics.jsonl").read_text()
    assert cli.run_command(main.main, main.define_flags, arguments) == 0
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_two_members_train_as_each_alone_in_float64(tmp_path, float64):
    configs = [tiny_config(train__precision="float64", seed=k, data__split_seed=k,
                           data__split=((0.8, 0.1, 0.1), (0.5, 0.3, 0.2))[k],
                           optimizer__lr=1e-3 * (k + 1), train__epochs=3) for k in (0, 1)]
    together = train.train(configs, [tmp_path / "a", tmp_path / "b"])
    alone = [train.train([c], [tmp_path / f"alone{k}"])[0] for k, c in enumerate(configs)]
    assert [r.step for r in together] == [12, 6] == [r.step for r in alone]  # own epoch lengths
    for k, name in enumerate("ab"):
        a, b = (read_jsonl(tmp_path / w / "metrics.jsonl") for w in (name, f"alone{k}"))
        assert [s["step"] for s in a] == [s["step"] for s in b]
        for x, y in zip(a, b, strict=True):
            assert abs(x["train_loss"] - y["train_loss"]) < 1e-8
            assert abs(x["val_loss"] - y["val_loss"]) < 1e-8


@pytest.mark.slow
def test_streamed_and_resident_data_give_the_same_run(tmp_path):
    for residence in ("device", "host"):
        config = tiny_config(data__residence=residence)
        train.train([config], [tmp_path / residence])
    assert_same_run(tmp_path / "device", tmp_path / "host")


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """Interrupted in mid-epoch, by a signal that comes after the sixth step."""
    config = tiny_config(train__epochs=3)
    train.train([config], [tmp_path / "whole"])
    interrupt_at_batch(monkeypatch, 7)
    result = train.train([config], [tmp_path / "cut"])[0]
    assert result.status == "interrupted" and 4 <= result.step < 12 and result.step % 4
    assert train.train([config], [tmp_path / "cut"])[0].status == "done"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_plateau_averaging_and_all_else_of_the_optimiser_resume_bit_for_bit(
        tmp_path, monkeypatch, capsys):
    """Losses that rise make the rate fall at validations before and after the interruption."""
    config = tiny_config(
        train__epochs=5, optimizer__schedule="plateau", optimizer__plateau_metric=("loss", "max"),
        optimizer__plateau_patience=0, optimizer__plateau_cooldown=1, optimizer__plateau_factor=0.3,
        optimizer__plateau_min_lr=1e-5, optimizer__ema=0.9, optimizer__clip=0.5,
        optimizer__warmup=1, optimizer__accumulate=1, optimizer__name="adamw")
    train.train([config], [tmp_path / "whole"])
    interrupt_at_batch(monkeypatch, 13)
    assert train.train([config], [tmp_path / "cut"])[0].status == "interrupted"
    file = tmp_path / "cut" / ENVIRONMENT_FILE
    record = read_json(file)
    record["arithmetic"]["cores"] += 1  # as if it had been begun on another machine
    file.write_text(json.dumps(record))
    assert train.train([config], [tmp_path / "cut"])[0].status == "done"
    cores = record["arithmetic"]["cores"]
    assert f"last bits may differ: cores {cores} -> {cores - 1}\n" in capsys.readouterr().err
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    rates = [s["lr"] for s in read_jsonl(tmp_path / "whole" / "metrics.jsonl")]
    assert rates[0] == pytest.approx(2.5e-3) and rates[1] == pytest.approx(5e-3)
    assert rates[-1] < rates[1] and len(set(rates)) == 4


@pytest.mark.slow
def test_averaged_weights_are_what_is_validated_kept_and_predicts(tmp_path):
    config = tiny_config(train__epochs=2, optimizer__ema=0.95)
    with config.unlocked():
        config.model = dict(name="simple_conv")
    train.train([config], [tmp_path / "run"])
    line = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    predictor = Predictor(tmp_path / "run", config, "last")
    arrays = data.load(config.data)
    batches = eval_batches(config, arrays, data.split_of(config.data, arrays)["val"],
                                predictor.network.mesh, None)
    scores = measure.validate(predictor.network.eval_step, predictor.network.values,
                              predictor.network.variables,
                               list(batches), config)
    assert scores["loss"] == pytest.approx(line["val_loss"], abs=1e-6)
    plain = checkpoint.load(
        tmp_path / "run" / "checkpoints", predictor.step, {"params": checkpoint.abstract(
            predictor.network.variables["params"],
            jax.sharding.SingleDeviceSharding(jax.devices()[0]))})
    difference = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(),
                              plain["params"], predictor.network.variables["params"])
    assert max(jax.tree.leaves(difference)) > 1e-3


@pytest.mark.slow
def test_minimum_reading_of_early_stopping_is_at_the_first_loss_not_below_the_one_before(
        tmp_path, monkeypatch):
    losses = iter((0.5, 0.6, 0.4, 0.3, 0.3, 0.1))
    names = ("dice_mean", "iou_mean", "dice_pooled", "iou_pooled")
    monkeypatch.setattr(measure, "validate", lambda *_: dict.fromkeys(names, 0.5) | {
        "loss": next(losses)})
    config = tiny_config(train__epochs=6, train__early_stopping=3,
                         train__early_stopping_mode="minimum")
    result = train.train([config], [tmp_path / "run"])[0]
    assert (result.status, result.step) == ("stopped early", 20)


@pytest.mark.slow
def test_sigterm_gives_exit_code_75(config_file, tmp_path):
    process = subprocess.Popen(
        command("main", f"--config={config_file}", f"--workdir={tmp_path / 'run'}",
                "--config.train.epochs=2000"),
        env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert "the same command continues" in stderr


def logged_step(run):
    """The last step in the log of a run that is being trained."""
    log = run / "metrics.jsonl"
    lines = read_jsonl(log) if log.exists() else []
    return lines[-1]["step"] if lines else 0


@pytest.mark.weekly
def test_killed_at_ten_random_moments_it_ends_bit_for_bit_the_same(config_file, tmp_path):
    """kill -9 in steps, saves and evaluation; saves every few steps, so that many are hit."""
    arguments = [f"--config={config_file}", "--config.train.epochs=150",
                 "--config.train.checkpoint_minutes=0.002"]
    whole = run_command("main", *arguments, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    run, rng = tmp_path / "killed", random.Random(1)

    def start():
        return subprocess.Popen(
            command("main", *arguments, f"--workdir={run}"), env=child_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(process):
        process.kill()
        process.wait()

    for target in sorted(rng.sample(range(8, 560), 6)):  # in steps and saves
        process = start()
        while process.poll() is None and logged_step(run) < target:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, "the run ended before it could be killed"
        kill(process)
    assert start().wait() == 0
    (run / "eval/test.json").unlink()
    started = time.monotonic()
    assert start().wait() == 0
    seconds = time.monotonic() - started
    for _ in range(4):  # in start, restore and evaluation
        (run / "eval/test.json").unlink(missing_ok=True)
        process = start()
        time.sleep(rng.uniform(0.3, 0.9) * seconds)
        kill(process)
    end = run_command("main", *arguments, f"--workdir={tmp_path / 'killed'}")
    assert end.returncode == 0, end.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    for name in ("metrics", "metrics_original_size"):
        scores = [json.loads((tmp_path / w / "eval/test.json").read_text())[name]
                  for w in ("whole", "killed")]
        assert scores[0] == scores[1]


@pytest.mark.slow
def test_damaged_checkpoint_is_set_aside_and_the_one_before_used(tmp_path, capsys):
    config = tiny_config(train__epochs=4, train__best=("loss", "max"))  # the first is the best
    train.train([config], [tmp_path / "whole"])
    train.train([config], [tmp_path / "hurt"])
    (tmp_path / "hurt" / "result.json").unlink()  # as if it was killed in its last step
    directory = tmp_path / "hurt" / "checkpoints"
    last = directory / str(checkpoint.saved_steps(directory)["last"])
    for file in [f for f in last.rglob("*") if f.is_file() and f.stat().st_size > 200]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert train.train([config], [tmp_path / "hurt"])[0].status == "done"
    assert "is damaged" in (said := capsys.readouterr().err)
    assert "going on from step 4" in said
    assert list((tmp_path / "hurt").glob("damaged_checkpoint_*"))
    assert_same_run(tmp_path / "whole", tmp_path / "hurt")


@pytest.mark.slow
def test_damaged_best_checkpoint_is_scored_by_the_last_and_without_any_it_is_one_line(tmp_path):
    config = tiny_config(train__epochs=4, train__best=("loss", "max"))  # the first is the best
    train.train([config], [tmp_path / "run"])
    directory = tmp_path / "run" / "checkpoints"
    saved = checkpoint.saved_steps(directory)
    assert saved["best"] < saved["last"]
    for step_ in (saved["best"], saved["last"]):
        for file in [f for f in (directory / str(step_)).rglob("*") if "state/" in str(f)]:
            if file.is_file():
                file.write_bytes(b"")
        if step_ == saved["best"]:
            assert Predictor(tmp_path / "run", config).step == saved["last"]
    with pytest.raises(InputError, match="no other checkpoint is whole"):
        Predictor(tmp_path / "run", config)


@pytest.mark.slow
def test_equal_scores_after_a_resume_are_still_ties(tmp_path, monkeypatch):
    """0.7 is no float32: what is compared must be what the checkpoint keeps."""
    constant = dict.fromkeys(("dice_mean", "iou_mean", "dice_pooled", "iou_pooled", "loss"), 0.7)
    monkeypatch.setattr(measure, "validate", lambda *_: constant)
    train.train([tiny_config(train__epochs=2)], [tmp_path / "run"])
    train.train([tiny_config(train__epochs=3)], [tmp_path / "run"])
    assert checkpoint.saved_steps(tmp_path / "run" / "checkpoints") == {"last": 12, "best": 4}


@pytest.mark.slow
def test_member_goes_on_alone_whatever_the_others_had_switched_on(tmp_path):
    sgd = dict(optimizer__name="sgd", train__epochs=1)
    plain = dict(sgd, model__dropout=0.0, augment__flip_horizontal=(0.0, 1.0),
                 optimizer__weight_decay=0.0)
    rich = dict(sgd, optimizer__momentum=0.9, model__dropout=0.1)
    train.train([tiny_config(**plain), tiny_config(**rich)], [tmp_path / "a", tmp_path / "b"])
    for name, options in (("a", plain), ("b", rich)):
        longer = tiny_config(**options | dict(train__epochs=2))
        result = train.train([longer], [tmp_path / name])[0]
        assert (result.status, result.step) == ("done", 8)
    both = [tiny_config(**o | dict(train__epochs=3)) for o in (plain, rich)]
    assert [r.step for r in train.train(both, [tmp_path / "a", tmp_path / "b"])] == [12, 12]


def test_failed_first_try_does_not_claim_the_workdir(tmp_path):
    broken = tiny_config()
    with broken.unlocked():
        broken.model.channels = (8,)
    with pytest.raises(InputError, match="config.model.channels: got .*at least two levels"):
        train.train([broken], [tmp_path / "run"])
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "config.json.123.tmp").write_text("half")
    assert train.train([tiny_config(train__epochs=1)], [tmp_path / "run"])[0].status == "done"


@pytest.mark.slow
def test_longer_training_goes_on_after_early_stopping(tmp_path):
    options = dict(train__early_stopping=1, optimizer__lr=1e-7)
    stopped = train.train([tiny_config(train__epochs=20, **options)], [tmp_path / "run"])[0]
    again = train.train([tiny_config(train__epochs=30, **options)], [tmp_path / "run"])[0]
    assert again.step > stopped.step


@pytest.mark.slow
def test_longer_training_extends_a_finished_run(tmp_path, capsys):
    train.train([tiny_config(train__epochs=2)], [tmp_path / "run"])
    result = train.train([tiny_config(train__epochs=3)], [tmp_path / "run"])[0]
    assert result.step == 12
    assert "extended" in capsys.readouterr().err
    train.train([tiny_config(train__epochs=3)], [tmp_path / "at once"])
    assert_same_run(tmp_path / "run", tmp_path / "at once")


def test_a_kill_before_the_first_step_of_an_extension_loses_nothing(tmp_path, monkeypatch):
    train.train([tiny_config(train__epochs=1)], [tmp_path / "run"])
    longer = tiny_config(train__epochs=2)
    with monkeypatch.context() as killed:
        killed.setattr(RunFolder, "begin", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.train([longer], [tmp_path / "run"])
    assert train.train([longer], [tmp_path / "run"])[0].step == 8


@pytest.mark.slow
def test_training_images_never_become_test_images_of_a_run(tmp_path):
    config = tiny_config(train__epochs=1)
    train.train([config], [tmp_path / "first"])
    split = read_json(tmp_path / "first/split.json")
    file = tmp_path / "split.json"
    file.write_text(json.dumps(split))
    config = tiny_config(train__epochs=1, data__split=str(file))
    train.train([config], [tmp_path / "run"])
    moved = split["train"][:2]
    file.write_text(json.dumps(split | {"train": split["train"][2:],
                                        "test": split["test"] + moved}))
    wanted = f"trained on another split .split.json.: {moved[0]}, {moved[1]} are in another part"
    for epochs in (1, 2):
        with pytest.raises(InputError, match=wanted):
            train.train([tiny_config(train__epochs=epochs, data__split=str(file))],
                        [tmp_path / "run"])
    with pytest.raises(InputError, match=wanted):
        evaluate.evaluate(config, tmp_path / "run")
    assert read_json(tmp_path / "run/split.json") == split


def test_how_a_run_is_validated_stays_until_it_has_ended(tmp_path):
    RunFolder(tmp_path / "run", tiny_config(), "data").close()
    (tmp_path / "run" / ENVIRONMENT_FILE).write_text('{"data_fingerprint": "data"}')
    for key, value in (("eval__every", 3), ("eval__threshold", 0.3)):
        with pytest.raises(InputError, match=f"{key.replace('__', '.')} was .*, is {value}"):
            RunFolder(tmp_path / "run", tiny_config(**{key: value}), "data")
    (tmp_path / "run" / "result.json").write_text("{}")
    RunFolder(tmp_path / "run", tiny_config(eval__threshold=0.3), "data").close()


@pytest.mark.slow
def test_code_of_earlier_steps_is_kept_and_named(tmp_path, capsys):
    train.train([tiny_config(train__epochs=1)], [tmp_path / "run"])
    file = tmp_path / "run" / ENVIRONMENT_FILE
    now = read_json(file)["code"]
    file.write_text(json.dumps(read_json(file) | {"code": "0" * 32}))
    train.train([tiny_config(train__epochs=2)], [tmp_path / "run"])
    assert f"continues with other code (00000000 -> {now[:8]})" in capsys.readouterr().err
    assert read_json(file)["code"] == now and read_json(file)["earlier_code"] == ["0" * 32]


def test_early_stopping_ends_the_run_and_stays_ended(tmp_path):
    config = tiny_config(train__epochs=50, train__early_stopping=1, optimizer__lr=1e-7)
    result = train.train([config], [tmp_path / "run"])[0]
    assert result.status == "stopped early" and result.step < 200
    again = train.train([config], [tmp_path / "run"])[0]
    assert again.status == "stopped early" and again.step == result.step


@pytest.mark.slow
def test_non_finite_member_stops_alone_with_its_batch_named(tmp_path):
    base = dict(optimizer__name="sgd", optimizer__momentum=0.9, train__epochs=3)
    good = tiny_config(**base, optimizer__lr=1e-3)
    bad = tiny_config(**base, optimizer__lr=1e30)
    results = train.train([good, bad], [tmp_path / "good", tmp_path / "bad"])
    assert [r.status for r in results] == ["done", "non-finite"]
    last = read_jsonl(tmp_path / "bad" / "metrics.jsonl")[-1]
    assert last["lr"] == pytest.approx(1e30) and len(last["images"]) == 8
    alone = train.train([good], [tmp_path / "alone"])[0]
    assert alone.metrics["val_loss"] == pytest.approx(results[0].metrics["val_loss"], abs=1e-4)


def test_workdir_of_another_config_is_refused_with_the_difference(tmp_path):
    train.train([tiny_config()], [tmp_path / "run"])
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError, match="optimizer.lr was 0.005, is 0.001"):
        train.train([tiny_config(optimizer__lr=1e-3)], [tmp_path / "run"])
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_workdir_of_a_run_that_never_began_takes_another_config(tmp_path):
    RunFolder(tmp_path, tiny_config(train__weights="typo.pt"), "data").close()
    RunFolder(tmp_path, tiny_config(), "data").close()
    assert read_config(tmp_path).train.weights == ""


def test_workdir_with_other_files_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="holiday.jpg"):
        train.train([tiny_config()], [tmp_path / "photos"])


def test_second_process_on_a_workdir_is_refused_with_the_first_one_named(tmp_path):
    config = tiny_config()
    first = RunFolder(tmp_path / "run", config, "data")
    with pytest.raises(InputError, match=f"pid {os.getpid()} on"):
        RunFolder(tmp_path / "run", config, "data")
    first.close()
    RunFolder(tmp_path / "run", config, "data").close()


def test_a_run_of_another_host_is_in_use_while_its_heart_beats(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    lock.write_text("pid 7 on elsewhere")
    with pytest.raises(lock_lib.InUse, match="in use by pid 7 on elsewhere"):
        lock_lib.Lock(tmp_path)
    os.utime(lock, (time.time() - 100,) * 2)
    monkeypatch.setattr(lock_lib, "HEARTBEAT", 0.01)
    monkeypatch.setattr(lock_lib, "HEARTBEAT_LOST", 0.1)
    with lock_lib.Lock(tmp_path):
        assert lock.read_text().startswith(f"pid {os.getpid()} on ")
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 5
        while not lock.stat().st_mtime and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.stat().st_mtime > 1e9
    assert lock.read_text() == ""


def test_batch_larger_than_the_training_split_is_refused(tmp_path):
    with pytest.raises(InputError, match="config.train.batch_size"):
        train.train([tiny_config(train__batch_size=64)], [tmp_path / "run"])
