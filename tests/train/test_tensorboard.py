"""Event files equal the logs, also after a resume that cut them."""

import importlib.util
import json
import subprocess
import sys

import pytest
from helpers import child_environment

from cellseg_jax.train import tensorboard


def read_scalars(folder):
    """{tag: [(step, value), ...]} of all event files, read by TFRecord framing alone."""
    from tensorboardX.proto.event_pb2 import Event

    out = {}
    for path in sorted((folder / "tensorboard").glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")  # then a checksum of 4 bytes
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                out.setdefault(value.tag, []).append((event.step, value.simple_value))
    return out


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_board_replays_logs_then_adds_live(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"step": 10, "epoch": 1, "train_loss": 0.5},
                                       {"step": 20, "epoch": 2, "val_dice_mean": 0.25}])
    write(tmp_path / "timing.jsonl", [{"step": 10, "images_per_second": 8}])
    board = tensorboard.Board(tmp_path)
    board.add({"step": 30, "train_loss": 0.125, "note": "text", "done": True, "lr": None,
               "val_loss": float("nan")})
    board.close()
    scalars = read_scalars(tmp_path)
    assert scalars["train/loss"] == [(10, 0.5), (30, 0.125)]
    assert scalars["val/dice_mean"] == [(20, 0.25)]
    assert scalars["images_per_second"] == [(10, 8.0)]
    assert not {"note", "done", "lr", "step", "val/loss"} & set(scalars)


def test_board_forgets_what_the_logs_forgot(tmp_path):
    for lines in ([{"step": 1, "lr": 1.0}, {"step": 2, "lr": 0.5}], [{"step": 1, "lr": 1.0}]):
        write(tmp_path / "metrics.jsonl", lines)
        tensorboard.Board(tmp_path).close()
    assert read_scalars(tmp_path)["lr"] == [(1, 1.0)]


def test_board_ignores_a_torn_last_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lr": 1.0}\n{"step": 2, "l')
    board = tensorboard.Board(tmp_path)
    board.close()
    assert read_scalars(tmp_path)["lr"] == [(1, 1.0)]


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not installed")
def test_torch_is_not_imported(tmp_path):
    code = ("import sys; from cellseg_jax.train.tensorboard import Board; "
            "Board(sys.argv[1]).close(); assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True,
                          text=True, env=child_environment(), timeout=120)
    assert done.returncode == 0, done.stderr
