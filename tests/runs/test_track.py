"""--track: each value of a run's files reaches the tracker once, whatever ends the process."""

import json
import signal
import struct
import sys
import time
import types

import pytest

from cellseg_jax import cli, main
from cellseg_jax.errors import InputError
from cellseg_jax.runs import lock, track, trackers
from cellseg_jax.runs.lock import Lock

STEPS, KEYS = (4, 8, 12), ("epoch", "lr", "train_loss", "val_dice_mean")


def line(step):
    return {"step": step, "epoch": step / 4, "lr": 1e-3, "train_loss": 1 / step,
            "val_dice_mean": step / 20, "val_hausdorff95": float("nan"), "images": ["a"]}


def write(folder, steps, result=None, config=None):
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {
        "optimizer": {"lr": 1e-3}, "many": {f"key{n}": n for n in range(150)}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line(s)) + "\n" for s in steps))
    if result:
        (folder / "result.json").write_text(json.dumps({"status": result, "step": steps[-1]}))
        (folder / "eval/test.json").write_text('{"metrics": {"dice_mean": 0.5, "seg": null}}')


@pytest.fixture(autouse=True)
def nothing_taken(monkeypatch):
    monkeypatch.setattr(lock, "TAKEN", {})
    monkeypatch.setattr(track, "TAKEN", lock.TAKEN)


class Killed(Exception):
    """The process ends here."""


@pytest.fixture
def mlflow(monkeypatch):
    """A stand-in with the calls that are used; `left` calls of log_batch until one is cut."""
    store = types.SimpleNamespace(metrics=[], params={}, status=[], runs={}, left=10**6)
    space = types.SimpleNamespace

    class Client:
        def get_experiment_by_name(self, name):
            return space(experiment_id=name)

        def search_runs(self, experiments, text):
            tag = text.split("'")[1]
            return [store.runs[tag]] if tag in store.runs else []

        def create_run(self, experiment, run_name, tags):
            run = space(info=space(run_id=run_name), data=space(params=store.params))
            return store.runs.setdefault(tags["cellseg_jax_run"], run)

        def get_metric_history(self, run, key):
            return [one for one in store.metrics if one.key == key]

        def log_batch(self, run, metrics=(), params=()):
            assert len(params) <= 100
            store.left -= 1
            cut = store.left == 0
            store.params.update((one.key, one.value) for one in params)
            store.metrics += metrics[: len(metrics) // 2] if cut else metrics
            if cut:
                raise Killed

        def set_terminated(self, run, status):
            store.status.append(status)

    made = lambda *names: lambda *values: space(**dict(zip(names, values, strict=True)))
    fake = types.ModuleType("mlflow")
    fake.MlflowClient = Client
    fake.entities = space(Param=made("key", "value"),
                          Metric=made("key", "value", "timestamp", "step"))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return store


def values(store):
    return sorted((one.key, one.step, one.value) for one in store.metrics)


def expected(steps, scored=True):
    found = [(key, step, float(line(step)[key])) for key in KEYS for step in steps]
    return sorted([*found, *[("test_dice_mean", steps[-1], 0.5)] * scored])


@pytest.mark.parametrize("calls", range(1, 8))
def test_mlflow_has_each_value_once_after_a_kill_at_any_call(tmp_path, mlflow, calls, capsys):
    write(tmp_path / "a/0", STEPS, "done")
    mlflow.left = calls
    for _ in range(2):
        with track.tracking("mlflow", "rates", tmp_path):
            pass
    assert values(mlflow) == expected(STEPS)
    assert len(mlflow.params) == 151 and mlflow.status[-1] == "FINISHED"
    assert [run.info.run_id for run in mlflow.runs.values()] == ["a/0"]
    assert ("is not sent (Killed: ); start the command again" in capsys.readouterr().err) == (
        calls <= 6)


def test_runs_are_sent_while_they_train_and_when_they_were_scored(tmp_path, mlflow, monkeypatch):
    monkeypatch.setattr(track, "INTERVAL", 0.01)
    folder = tmp_path / "a/0"
    seen = lambda text: [one for one in mlflow.metrics if one.key == text]
    wait = lambda done: all(not done() and not track.threading.Event().wait(0.01)
                            for _ in range(500)) is False
    with track.tracking("mlflow", "rates", tmp_path):
        with Lock(folder):
            write(folder, STEPS[:2])
            assert wait(lambda: len(seen("train_loss")) == 2) and not mlflow.status
            write(folder, STEPS)
            assert wait(lambda: len(seen("train_loss")) == 3)
        with Lock(folder):
            write(folder, STEPS, "non-finite")
    assert values(mlflow) == expected(STEPS) and mlflow.status[-1] == "FAILED"
    assert track.LOCK_FILE in {p.name for p in folder.iterdir()}


def test_a_run_is_opened_again_where_its_files_changed_or_on_request(tmp_path, mlflow):
    write(tmp_path / "a/0", STEPS, "done")
    _tracked(tmp_path)
    mlflow.metrics.clear()  # as if its database was deleted
    _tracked(tmp_path)
    assert not mlflow.metrics
    _tracked(tmp_path, again=True)
    assert values(mlflow) == expected(STEPS)
    (tmp_path / "a/0/eval/test.json").write_text('{"metrics": {"dice_mean": 0.75}}')
    _tracked(tmp_path)
    assert ("test_dice_mean", STEPS[-1], 0.75) in values(mlflow)
    assert len(mlflow.metrics) == len(expected(STEPS)) + 1


def _tracked(folder, **options):
    with track.tracking("mlflow", "rates", folder, **options):
        pass


def test_a_run_that_another_process_sends_is_left_to_it(tmp_path, mlflow):
    write(tmp_path / "a/0", STEPS)
    lock.TAKEN[tmp_path / "a/0"] = True
    sender = track.Sender(trackers.tracker("mlflow"), "mlflow", "rates", tmp_path)
    other = track.system_lock(tmp_path / "a/0" / track.LOCK_FILE, wait=False)
    sender.send(tmp_path / "a/0")
    assert not mlflow.metrics
    track.os.close(other)
    sender.send(tmp_path / "a/0")
    assert values(mlflow) == expected(STEPS, scored=False)


def test_trackers_that_are_unknown_or_missing_are_one_line(monkeypatch):
    with pytest.raises(InputError, match="--track: got 'neptune'; expected"):
        trackers.tracker("neptune")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"--track=wandb: needs .* 'cellseg_jax\[wandb\]'"):
        trackers.tracker("wandb")


def test_another_config_in_the_same_folder_is_another_run(tmp_path):
    ids = []
    for rate in (1e-3, 2e-3, 1e-3):
        write(tmp_path / "a/0", STEPS, config={"optimizer": {"lr": rate}})
        ids.append(track.about(tmp_path / "a/0", "rates", tmp_path))
    assert ids[0] == ids[2] and ids[0].id != ids[1].id
    assert (ids[0].name, ids[0].group, ids[0].config) == ("a/0", "a", {"optimizer.lr": 1e-3})


TINY = """
from cellseg_jax.config import default

def get_config():
    config = default()
    config.data = dict(name="synthetic", size=(32, 32), count=24)
    config.model = dict(name="simple_conv")
    config.train.epochs = 2
    return config
"""


@pytest.mark.slow
def test_a_command_sends_what_its_run_has_written(tmp_path, mlflow):
    (tmp_path / "tiny.py").write_text(TINY)
    folder = tmp_path / "runs/tiny"
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):  # the second one finds nothing to do
        code = cli.run_command(main.main, main.define_flags, [
            "main", f"--config={tmp_path / 'tiny.py'}", f"--workdir={folder}", "--track=mlflow"])
        assert code == 0
    signal.signal(signal.SIGTERM, before)
    logged = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {step: value for key, step, value in values(mlflow) if key == "train_loss"} == {
        one["step"]: one["train_loss"] for one in logged}
    assert len({(one.key, one.step) for one in mlflow.metrics}) == len(mlflow.metrics)
    scores = json.loads((folder / "eval/test.json").read_text())["metrics"]
    assert ("test_dice_mean", logged[-1]["step"], scores["dice_mean"]) in values(mlflow)
    assert mlflow.params["train.epochs"] == "2" and mlflow.status[-1] == "FINISHED"


# --- the real ones --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_itself(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write(tmp_path / "a/0", STEPS[:2])
    for steps, result in ((STEPS[:2], None), (STEPS, "done"), (STEPS, "done")):
        write(tmp_path / "a/0", steps, result)
        with track.tracking("mlflow", "rates", tmp_path):
            pass
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("rates").experiment_id])
    found = sorted((one.key, one.step, one.value) for key in (*KEYS, "test_dice_mean")
                   for one in client.get_metric_history(run.info.run_id, key))
    assert found == expected(STEPS) and run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001" and len(run.data.params) == 151


def wandb_records(path):
    """The records of an offline run's file: a log in blocks of 32 kB, as LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data) and any(data[place : place + 7]):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.slow
def test_wandb_itself(tmp_path, monkeypatch):
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for steps, result in ((STEPS[:2], None), (STEPS, "done")):
        write(tmp_path / "a/0", steps, result)
        with track.tracking("wandb", "rates", tmp_path):
            pass
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    end, records = time.monotonic() + 30, []
    while not (records and records[-1].HasField("exit")) and time.monotonic() < end:
        records = list(wandb_records(file))  # a process of its own writes it
    in_words = lambda items: {one.key or one.nested_key[0]: json.loads(one.value_json)
                              for one in items}
    rows = [in_words(record.history.item) for record in records if record.HasField("history")]
    summary = {}
    for record in records:
        summary |= in_words(record.summary.update)
    assert [row["_step"] for row in rows] == list(STEPS)
    assert [{key: row[key] for key in KEYS} for row in rows] == [
        {key: line(step)[key] for key in KEYS} for step in STEPS]
    assert summary["test_dice_mean"] == 0.5
