"""Cells that a target or the size of the input loses are counted, and the doctor says so."""

import numpy as np
import pytest
from PIL import Image

from cellseg_jax import config as config_lib
from cellseg_jax import data
from cellseg_jax.planning import data_check, target_survival
from cellseg_jax.planning.target_survival import Survival


def squares():
    """Two cells side by side with one border, one alone, and one of a single pixel."""
    label = np.zeros((64, 64), np.uint8)
    label[8:20, 8:20], label[8:20, 20:32], label[40:56, 40:56], label[60, 5] = 1, 2, 3, 4
    return label


@pytest.fixture
def root(tmp_path):
    for n in range(10):
        for folder, array in (("images", squares() * 40 + 7 + n), ("masks", squares())):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / folder / f"s{n}.png")
    return tmp_path


def config_of(root, **options):
    config = config_lib.default()
    config.data = {"name": "folder", "root": str(root), "channels": "gray", "size": (64, 64),
                   **options}
    config.model = dict(name="unet", channels=(4, 8, 8))
    config.train.batch_size = 2
    return config_lib.complete(config)


def survival_of(config):
    return target_survival.survival(config, data.load_few(config.data))


@pytest.mark.parametrize("target, back, kinds", [
    # Of two squares in one object, the IoU of the first is 0.5, which counts as found.
    ("foreground", 30, (10, 0, 0, 0)),
    *(pytest.param(name, 40, (0, 0, 0, 0), marks=pytest.mark.slow)
      for name in ("distance", "flow"))])
def test_cells_that_a_target_gives_back(root, target, back, kinds):
    options = {"target": target}
    assert survival_of(config_of(root, **options)) == Survival(10, 40, 40, back, kinds)


def test_cells_that_resizing_removes_are_an_error(root):
    config = config_of(root, size=(32, 32), target="distance")
    found = survival_of(config)
    assert found == Survival(10, 40, 30, 30, (0, 0, 0, 0), (64, 64))
    report = data_check.check(config)
    assert report.count("error") == 1
    assert ("config.data.size: resizing to 32x32 leaves no pixel of 10 of 40 cells of 10 images; "
            "set it to 64x64, which keeps all, or config.data.fit=random_crop"
            ) in str(report.lines[0])


def test_windows_have_no_cells_to_lose(root):
    """A window shows a part of the cells of its image: nothing is wrong with that."""
    config = config_of(root, size=(32, 32), fit="random_crop", target="distance")
    assert list(target_survival.findings(config, survival_of(config))) == []


def test_the_doctor_says_what_a_target_loses(root):
    report = data_check.check(config_of(root))
    line, = (line for line in report.lines if line.where == "config.data.target")
    assert line.level == "warning"
    assert line.what == (
        "foreground at 64x64, decoded from a network without error, gives 30 of 40 cells of 10 "
        "images back (10 merged with a neighbour); config.data.target=distance keeps cells apart "
        "that touch")


def test_binary_masks_have_no_cells_to_lose(root):
    """All cells have one value: three squares decoded from it are no cell that was split."""
    label = np.zeros((64, 64), np.uint8)
    label[8:20, 8:20] = label[8:20, 30:42] = label[40:52, 30:42] = 1
    for path in (root / "masks").iterdir():
        Image.fromarray(label).save(path)
    report = data_check.check(config_of(root, labels="binary"))
    assert not [line for line in report.lines if line.where == "config.data.target"]


@pytest.mark.slow
@pytest.mark.parametrize("size, fit, expected", [
    ((56, 64), "resize", []), ((80, 64), "random_crop", []), ((40, 64), "resize", [
        "resizing to 40x64 changes the shape of cells in 10 of 10 images, by 1.6 times in those of "
        "64x64; config.data.fit=random_crop or pad keeps it, or a config.data.size of another "
        "shape"])])
def test_squashed_images_are_a_warning(root, size, fit, expected):
    report = data_check.check(config_of(root, size=size, fit=fit, target="distance"))
    lines = [line for line in report.lines if line.where == "config.data.fit"]
    assert [(line.level, line.what) for line in lines] == [("warning", text) for text in expected]


@pytest.mark.parametrize("gone, level", [(0, []), (1, ["note"]), (50, ["note"]), (51, ["error"])])
def test_how_many_vanished_cells_are_an_error(gone, level):
    found = Survival(12, 1000, 1000 - gone, 1000 - gone, (0, 0, 0, 0))
    config = config_lib.complete(config_lib.default())
    assert [one.level for one in target_survival.findings(config, found)] == level
