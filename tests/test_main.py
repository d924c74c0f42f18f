"""The command line: every bad input is one clear line and exit code 2, and nothing is overwritten.

Most run in this process through main.run_command, which is what `python -m` calls; one runs in a
fresh process, as a user would.
"""

import json
import os
import shutil
import subprocess

import browser
import grain
import imageio.v3 as iio
import numpy as np
import pytest
from helpers import ROOT, command, run_command

from cellseg_jax import cli, main
from cellseg_jax.data.synthetic import twins
from cellseg_jax.files import read_json

CONFIG = """
from cellseg_jax.config import default


def get_config():
    config = default()
    config.data = dict(name="folder", root={root!r}, size=(32, 32), labels="binary",
                       channels={channels!r})
    config.model = dict(name="unet", channels=(4, 8))
    config.train.epochs = 1
    config.train.batch_size = 8
    return config
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty good image and mask pairs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i in range(20):
        mask = np.zeros((40, 48), np.uint8)
        mask[10:20, 5 + i : 15 + i] = 255
        image = (mask // 2 + rng.integers(0, 60, mask.shape)).astype(np.uint8)
        iio.imwrite(tmp_path / "data/images" / f"{i:02d}.png", image)
        iio.imwrite(tmp_path / "data/masks" / f"{i:02d}.png", mask)
    return tmp_path / "data"


def started(folder, *arguments, root=None, channels="gray"):
    """(exit code) of main with a config of that folder."""
    path = folder.parent / "mine.py"
    path.write_text(CONFIG.format(root=str(folder if root is None else root), channels=channels))
    return cli.run_command(main.main, main.define_flags,
                            ["main", f"--config={path}", *arguments])


def one_line(capsys, *words):
    """The error is one line on stderr with these words; no traceback."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0], lines[0]


@pytest.mark.slow
def test_good_folder_trains(folder):
    assert started(folder) == 0
    scores = json.loads((folder.parent / "runs/mine/eval/test.json").read_text())
    assert scores["n_images"] == 2 and 0 <= scores["metrics"]["dice_mean"] <= 1
    split = json.loads((folder.parent / "runs/mine/split.json").read_text())
    assert [len(split[part]) for part in ("train", "val", "test")] == [16, 2, 2]


def test_missing_root(folder, capsys):
    assert started(folder, root=folder / "nowhere") == 2
    one_line(capsys, "config.data.root", "nowhere")


def test_no_root_given(folder, capsys):
    assert started(folder, root="") == 2
    one_line(capsys, "config.data.root", "--config.data.root=DIR")


def test_empty_folder(folder, capsys):
    for file in folder.rglob("*.png"):
        file.unlink()
    assert started(folder) == 2
    one_line(capsys, "config.data.root")


def test_image_without_mask(folder, capsys):
    (folder / "masks/07.png").unlink()
    assert started(folder) == 2
    one_line(capsys, "07")


def test_image_and_mask_of_different_sizes(folder, capsys):
    iio.imwrite(folder / "masks/03.png", np.zeros((48, 40), np.uint8))
    assert started(folder) == 2
    one_line(capsys, "03.png", "40x48", "48x40", "transpose")


def test_truncated_png(folder, capsys):
    file = folder / "images/05.png"
    file.write_bytes(file.read_bytes()[:-400])
    assert started(folder) == 2
    one_line(capsys, "05.png")


def test_mask_with_more_than_two_values(folder, capsys):
    mask = iio.imread(folder / "masks/04.png")
    mask[0, :5] = 17
    iio.imwrite(folder / "masks/04.png", mask)
    assert started(folder) == 2
    one_line(capsys, "04.png", "17")


@pytest.mark.weekly
def test_the_default_run_decodes_and_orders_its_images_by_grain(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    twins.write("dsb2018", tmp_path / "twin", count=12, size=(40, 40))
    decoded, steps = [], []
    source, numbers = grain.MapDataset.source, grain.MapDataset.range
    monkeypatch.setattr(grain.MapDataset, "source", lambda records: source(records).map(
        lambda record: decoded.append(record.name) or record))
    monkeypatch.setattr(grain.MapDataset, "range", lambda *ends: numbers(*ends).map(
        lambda step: steps.append(int(step)) or step))
    small = dict(hidden_size=24, num_heads=4, mlp_dim=32, num_layers=4, feature_size=4)
    assert cli.run_command(main.main, main.define_flags, [
        "main", f"--config={ROOT}/configs/unetr_sgd.py", f"--config.data.root={tmp_path}/twin",
        "--config.data.size=(32, 32)", f"--config.data.cache={tmp_path}/cache",
        "--config.train.epochs=2", "--workdir=run",
        *(f"--config.model.{key}={value}" for key, value in small.items())]) == 0
    assert read_json(tmp_path / "run/environment.json")["program"]["residence"] == "device"
    split = read_json(tmp_path / "run/split.json")
    assert sorted(decoded) == sorted(name for part in ("train", "val", "test")
                                     for name in split[part])
    assert sorted(set(steps)) == list(range(read_json(tmp_path / "run/result.json")["step"]))


def test_rgba_mask_whose_alpha_hides_it(folder, capsys):
    mask = iio.imread(folder / "masks/02.png")
    rgba = np.stack([mask, mask, mask, np.zeros_like(mask)], -1)
    iio.imwrite(folder / "masks/02.png", rgba)
    assert started(folder) == 2
    one_line(capsys, "02.png", "alpha")


@pytest.mark.parametrize("argument,words", [
    ("--config.optimizer.lerning_rate=1", ["lerning_rate", "did you mean config.optimizer.lr?"]),
    ("--config.optimizer.lr=fast", ["config.optimizer.lr", "fast", "a number"]),
    ("--config.data.labels=binry", ["binry", "binary"]),
    ("--workdr=x", ["workdr"]),
    ("--mode=trian", ["--mode", "trian", "train"]),
    ("stray", ["stray"]),
    ("--config.train.batch_size=500", ["config.train.batch_size", "500"]),
    ("--config.train.precision=float64", ["config.train.precision", "JAX_ENABLE_X64"]),
])
def test_bad_argument(folder, capsys, argument, words):
    assert started(folder, argument) == 2
    one_line(capsys, *words)


def test_missing_config_file(folder, capsys):
    arguments = ["main", "--config=configs/none.py"]
    assert cli.run_command(main.main, main.define_flags, arguments) == 2
    one_line(capsys, "configs/none.py")


def test_no_config_at_all(capsys):
    assert cli.run_command(main.main, main.define_flags, ["main"]) == 2
    one_line(capsys, "--config")
    assert cli.run_command(main.main, main.define_flags, ["main", "--mode=eval"]) == 2
    one_line(capsys, "--workdir=runs/NAME")


@pytest.mark.slow
def test_workdir_of_another_config_is_left_as_it_is(folder, capsys):
    assert started(folder) == 0
    run = folder.parent / "runs/mine"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    assert started(folder, "--config.optimizer.lr=1e-3") == 2
    one_line(capsys, "optimizer.lr was 0.005, is 0.001")
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.slow
def test_workdir_of_other_data_is_refused(folder, capsys):
    assert started(folder) == 0
    iio.imwrite(folder / "images/01.png", np.zeros((40, 48), np.uint8))
    assert started(folder) == 2
    one_line(capsys, "other data")


def test_workdir_that_cannot_be_written(folder, capsys):
    (folder.parent / "blocked").write_text("a file where a folder should be")
    assert started(folder, "--workdir=blocked/run") == 2
    one_line(capsys, "--workdir", "blocked")


def test_read_only_workdir(folder, capsys):
    """A read-only bind mount binds root too; skipped where mounting is not allowed."""
    place = folder.parent / "sealed"
    place.mkdir()
    commands = (["mount", "--bind", place, place], ["mount", "-o", "remount,bind,ro", place])
    try:
        if any(subprocess.run(c, capture_output=True).returncode for c in commands):
            pytest.skip("mounting is not allowed here")
        assert started(folder, "--workdir=sealed/run") == 2
        one_line(capsys, "--workdir", "sealed", "Read-only")
    except FileNotFoundError:
        pytest.skip("no mount command here")
    finally:
        subprocess.run(["umount", "-l", place], capture_output=True)


def test_eval_without_a_run(folder, capsys):
    assert started(folder, "--mode=eval", "--workdir=runs/none") == 2
    one_line(capsys, "runs/none", "config.json is missing")


@pytest.mark.slow
def test_eval_again_with_another_decoding(folder):
    assert started(folder) == 0
    arguments = ["main", "--mode=eval", f"--workdir={folder.parent / 'runs/mine'}",
                 "--config.eval.decode=components", "--split=val"]
    assert cli.run_command(main.main, main.define_flags, arguments) == 0
    assert (folder.parent / "runs/mine/eval/val.json").exists()


@pytest.mark.slow
def test_eval_on_another_folder(folder, capsys):
    """As a user would: her own new images, all of them, and the page of their scores."""
    assert started(folder) == 0
    run, other = folder.parent / "runs/mine", folder.parent / "new images"
    own = (run / "eval/test.json").read_bytes()
    shutil.copytree(folder, other)
    for i in range(20):
        (other / f"images/{i:02d}.png").rename(other / f"images/new {i}.png")
        (other / f"masks/{i:02d}.png").rename(other / f"masks/new {i}.png")
    arguments = ["main", "--mode=eval", f"--workdir={run}", "--split=all",
                 f"--config.data.root={other}"]
    assert cli.run_command(main.main, main.define_flags, arguments) == 0
    said = capsys.readouterr()
    assert "all split, 20 images" in said.out and "other data than the run was" in said.err
    assert "WARNING" not in said.err and (run / "eval/test.json").read_bytes() == own
    (path,) = run.glob("report_folder-*_all.html")
    with browser.opened(path, width=390) as page:
        assert page.errors == [] and page.requests == [] and page.overflow() <= 0
        assert page.broken_pictures() == [] and page.page.locator("img").count() == 12
    iio.imwrite(other / "images/new 3.png", np.zeros((40, 48, 5), np.uint8), extension=".tiff")
    assert cli.run_command(main.main, main.define_flags, arguments) == 2
    one_line(capsys, "new 3.png")
    arguments = [*arguments[:-1], f"--config.data.root={folder}", "--config.data.channels=rgb"]
    assert cli.run_command(main.main, main.define_flags, arguments) == 2
    one_line(capsys, "data.channels was 'gray', is 'rgb'")


@pytest.mark.slow
def test_eval_on_another_dataset_by_name(folder):
    assert started(folder) == 0
    arguments = ["main", "--mode=eval", f"--workdir={folder.parent / 'runs/mine'}", "--split=val",
                 "--config.data.name=synthetic", "--config.data.count=10"]
    assert cli.run_command(main.main, main.define_flags, arguments) == 0
    (path,) = (folder.parent / "runs/mine/eval").glob("synthetic-*_val.json")
    assert '"n_images": 1' in path.read_text()


def test_help_into_a_closed_pipe_ends_well():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command("main", "--help"), stdout=writer, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 0 and done.stderr == b""


def test_describe_prints_the_layers(folder, capsys):
    assert started(folder, "--mode=describe") == 0
    assert "Conv" in capsys.readouterr().out


def test_a_fresh_process_says_one_line_and_exits_with_2(tmp_path):
    done = run_command("main", "--config=nowhere.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("argument,words", [
    ("--split=tset", ["--split", "tset", "test"]),
    # It would test on training images.
    ("--config.data.split_seed=1", ["data.split_seed was 0, is 1"]),
])
def test_eval_refuses_what_was_not_trained(folder, capsys, argument, words):
    assert started(folder) == 0
    assert started(folder, "--mode=eval", argument) == 2
    one_line(capsys, *words)
