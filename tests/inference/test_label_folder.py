"""Labels made elsewhere are scored as runs, alone and as a row of a study."""

import json

import numpy as np
import pytest
import tifffile
from helpers import tiny_config

from cellseg_jax import cli, data, main, metrics, predict
from cellseg_jax import config as config_lib
from cellseg_jax.errors import InputError
from cellseg_jax.inference import label_folder
from cellseg_jax.inference.label_folder import LabelFolder, read_label
from cellseg_jax.studies import launch, load
from cellseg_jax.studies.study import row_config

CONFIG = """
from cellseg_jax.config import default
def get_config():
    config = default()
    config.data = dict(name="synthetic", size=(32, 32), count=12, image_size=(40, 48),
                       split=(0.5, 0.0, 0.5))
    config.model = dict(name="unet", channels=(4, 8))
    config.eval.panels = 1
    return config
"""


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    config = tiny_config(data__image_size=(40, 48), data__count=12, data__split=(0.5, 0.0, 0.5),
                         data__cache=str(tmp_path_factory.mktemp("cache")))
    return config, data.load(config.data)


@pytest.fixture
def folder(arrays, tmp_path):
    """Labels of the test images: the truth without its first object, with other names."""
    config, loaded = arrays
    out = tmp_path / "labels"
    out.mkdir()
    write = [lambda stem, x: tifffile.imwrite(out / f"{stem}_cp_masks.tif", x.astype(np.uint16)),
             lambda stem, x: np.save(out / f"{stem}.npy", x.astype(np.int64))]
    for n, i in enumerate(data.split_of(config.data, loaded)["test"]):
        label = loaded.original_label(i)
        write[n % 2](loaded.image_names[i].rpartition("/")[2], np.where(label == 1, 0, label))
    return out


def opened(arrays, folder, **more):
    config, loaded = arrays
    config = config_lib.changed(
        config, {"model.name": "labels", "model.folder": str(folder), **more})
    return LabelFolder(config, loaded, data.split_of(config.data, loaded)["test"])


def test_files_are_found_by_name_and_scored_at_original_size(arrays, folder):
    labels = opened(arrays, folder)
    measured = labels.measured()
    n_true = sum(one.n_true for one in measured.objects)
    assert sum(one.n_pred for one in measured.objects) == n_true - len(labels.files)
    assert sum(one.tp[-1] for one in measured.objects) == n_true - len(labels.files)
    i = labels.indices[0]
    assert labels.as_seen(0, arrays[1].original_label(i)).tolist() == arrays[1].label[i].tolist()


def test_an_image_beside_its_labels_is_no_label(arrays, folder):
    """Cellpose writes x_cp_masks.tif beside x.png: the name alone does not say which is which."""
    labels = opened(arrays, folder)
    stem = labels.files[0].name.partition("_cp_masks")[0]
    np.save(folder / f"{stem}.npy", np.arange(40 * 48).reshape(40, 48))
    with pytest.raises(InputError, match=f"several labels, such as {stem}.npy, {stem}_cp_masks.tif;"
                                         " keep one of them, and no images"):
        opened(arrays, folder)


def test_a_file_with_the_name_of_another_image_is_that_ones(tmp_path):
    for name in ("x.tif", "x_mask.tif", "y_mask.tif"):
        (tmp_path / name).touch()
    found = label_folder._files_of(tmp_path, ("x", "x_mask", "y"))
    assert {name: [path.name for path in files] for name, files in found.items()} == {
        "x": ["x.tif"], "x_mask": ["x_mask.tif"], "y": ["y_mask.tif"]}


def test_outlines_are_scored_as_those_of_a_run(arrays, folder):
    assert opened(arrays, folder).measured().surfaces == []
    labels = opened(arrays, folder, **{"eval.surface": 1.0})
    surfaces = labels.measured().surfaces
    truth, label = arrays[1].original_label(labels.indices[0]), labels.label(0)
    assert len(surfaces) == len(labels.files) and surfaces[0]["surface_dice"] < 1
    assert surfaces[0]["hausdorff95"] == metrics.hausdorff95(truth > 0, label > 0)
    assert surfaces[0]["rand_error"] == metrics.rand_error(truth, label)


def test_missing_double_and_other_files_are_named(arrays, folder, capsys):
    labels = opened(arrays, folder)
    np.save(folder / "stranger.npy", np.zeros((4, 4), int))
    labels.note_others()
    assert "1 files have the name of no image and are left out: stranger.npy" in (
        capsys.readouterr().err)
    first = labels.files[0]
    (folder / f"{first.name.partition('_cp_masks')[0]}_label.npy").write_bytes(b"")
    with pytest.raises(InputError, match="1 images have several labels"):
        opened(arrays, folder)
    for path in folder.glob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match="has no label for 3 of 6 images: "):
        opened(arrays, folder)


@pytest.mark.parametrize("label, message", [
    (np.zeros((4, 6), int), "label is 4x6, its image 6x4; expected labels at"),
    (np.full((6, 4), -1), "expected instance ids, whole numbers from 0"),
    (np.full((6, 4), 0.5), "expected instance ids, whole numbers from 0"),
    (np.array([{}]), "cannot be read as an array")])
def test_what_is_no_label_is_refused(tmp_path, label, message):
    np.save(tmp_path / "a.npy", label, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        read_label(tmp_path / "a.npy", (6, 4))


def test_the_command_makes_a_run_folder(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.py").write_text(CONFIG)
    words = ["main", "--mode=eval", "--labels=nowhere", "--workdir=runs/peer"]
    assert cli.run_command(main.main, main.define_flags, words) == 2
    assert "--config: missing" in capsys.readouterr().err
    words.append("--config=base.py")  # a folder that is not there does not keep its name for it
    assert cli.run_command(main.main, main.define_flags, words) == 2
    assert "got 'nowhere'; expected a folder of label images" in capsys.readouterr().err
    command = lambda *more: cli.run_command(main.main, main.define_flags, [
        "main", "--config=base.py", f"--labels={folder}", "--workdir=runs/peer", *more])
    assert command("--mode=eval") == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "runs/peer/eval/test.json").read_text())
    assert "loss" not in scores["metrics"] and scores["ms_per_image"] is None
    large = scores["metrics_original_size"]
    n_true = sum(scores["errors"].values()) - scores["errors"]["spurious"]
    assert large["ap50"] == large["ap"] == pytest.approx(1 - 6 / n_true)
    assert large["count_error"] == 1
    page = (tmp_path / "runs/peer/report.html").read_text()
    assert f"Labels of the folder {folder}" in page
    assert "cellseg_jax.predict" not in page and "threshold 0.5" not in page
    assert len(list((tmp_path / "runs/peer/eval/test_predictions").glob("*.png"))) == 1
    first = sorted(folder.glob("*.npy"))[0]
    np.save(first, np.load(first) * 0)
    assert command("--mode=eval") == 0
    again = json.loads((tmp_path / "runs/peer/eval/test.json").read_text())
    assert again["labels_content"] != scores["labels_content"]
    assert again["metrics_original_size"]["ap50"] < large["ap50"]
    assert command() == 2
    assert "--labels: nothing reads it without --mode=eval" in capsys.readouterr().err
    assert cli.run_command(predict.main, predict.define_flags, [
        "predict", "--workdir=runs/peer", f"--images={folder}", "--out=out"]) == 2
    assert "labels made elsewhere" in capsys.readouterr().err


def test_scores_of_true_labels_are_perfect(arrays, folder):
    labels = opened(arrays, folder)
    truth = [arrays[1].original_label(i) for i in labels.indices]
    for path, label in zip(labels.files, truth, strict=True):
        np.save(path, label) if path.suffix == ".npy" else tifffile.imwrite(
            path, label.astype(np.uint32))
    found = opened(arrays, folder).measured()
    total = metrics.InstanceCounts(*map(sum, zip(*found.objects, strict=True)))
    assert set(metrics.instance_scores(total).values()) == {1.0}
    np.testing.assert_array_equal(metrics.coco_ap(found.found), 1)


def test_a_row_of_a_study_may_be_a_folder_of_each_repeat(arrays, folder, tmp_path):
    config, loaded = arrays
    row = row_config(config, {"peer": {"labels": f"{folder.parent}/{{seed}}"}}, "peer")
    assert row.model.to_dict() == {"name": "labels", "folder": f"{folder.parent}/{{seed}}"}
    folder.rename(tmp_path / "3")
    labels = opened(arrays, row.model.folder, seed=3)
    assert labels.folder == tmp_path / "3" and len(labels.files) == 6
    with pytest.raises(InputError, match="/0'; expected a folder of label images"):
        opened(arrays, row.model.folder)
    study = tmp_path / "s.py"
    study.write_text("from cellseg_jax import config, studies\nTITLE = 't'\n"
                     f"BASE = config.load({str(tmp_path / 'base.py')!r})\n"
                     "ROWS = {'ours': {}, 'peer': {'labels': 'nowhere'}}\n"
                     "get_config = studies.rows(BASE, ROWS)\n")
    (tmp_path / "base.py").write_text(CONFIG)
    with pytest.raises(InputError, match=r"ROWS\['peer'\]: .*got 'nowhere'"):  # before `ours`
        launch.planned(load(study), tmp_path / "s", None, 1, False)
    binary = {"labels": "x", "data.name": "folder", "data.labels": "binary"}
    with pytest.raises(InputError, match="config.data.target: .* expected instances"):
        row_config(config, {"peer": binary}, "peer")
