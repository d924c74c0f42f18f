import numpy as np
import pytest
import tifffile

from cellseg_jax.data import read
from cellseg_jax.data.datasets import isbi2012
from cellseg_jax.errors import InputError


@pytest.fixture
def root(tmp_path):
    """Seven slices of 12x10, two cells in each: a diagonal of membrane that pixels touch across."""
    rng = np.random.default_rng(0)
    label = np.full((7, 12, 10), 255, np.uint8)
    label[:, 6] = 0
    label[:, 6, 3] = 255
    label[:, 5, 3] = 0  # the pixel below it meets the upper cell at corners only
    save(tmp_path, rng.integers(0, 256, (7, 12, 10), np.uint8), label)
    return tmp_path


def save(root, volume=None, label=None):
    for name, stack in (("train-volume", volume), ("train-labels", label)):
        if stack is not None:
            tifffile.imwrite(root / f"{name}.tif", stack, imagej=stack.dtype != bool)


def test_records_read_pages_one_by_one(root):
    listed = isbi2012.records(root)
    assert [r.name for r in listed] == [f"slice_{i}" for i in range(7)]
    assert [r.group for r in listed] == ["block_0"] * 6 + ["block_1"]
    volume, label = (tifffile.imread(root / f"train-{name}.tif") for name in ("volume", "labels"))
    for i in (0, 3, 6):
        sample = listed[i].read()
        np.testing.assert_array_equal(sample.image, volume[i][..., None])
        np.testing.assert_array_equal(sample.label, label[i] == 255)
        assert sample.label.dtype == np.int32
    assert [r.group for r in isbi2012.records(root, block=0)] == ["stack"] * 7
    assert len({r.group for r in isbi2012.records(root, block=1)}) == 7


def test_records_foreground_and_instances(root):
    cell = isbi2012.records(root)[0].read().label
    np.testing.assert_array_equal(
        isbi2012.records(root, foreground="membrane")[0].read().label, 1 - cell)
    instances = isbi2012.records(root, labels="instances")[0].read().label
    np.testing.assert_array_equal(instances > 0, cell)
    assert instances.max() == 2  # by corners they would be one
    assert instances[0, 0] != instances[11, 0] == instances[6, 3]
    with pytest.raises(InputError, match="config.data.foreground: got 'membrane' with labels=inst"):
        isbi2012.records(root, labels="instances", foreground="membrane")


def test_records_note_unlabelled_slices(root):
    assert isbi2012.records(root).findings == ()
    (root / "test-volume.tif").touch()
    finding, = isbi2012.records(root).findings
    assert finding.level == "note" and finding.what == "has no labels: not read"


def test_records_reject_bad_files_and_options(root):
    with pytest.raises(InputError, match="config.data.root: not set; .*imagej.net"):
        isbi2012.records("")
    with pytest.raises(InputError, match="config.data.block: got -1"):
        isbi2012.records(root, block=-1)
    save(root, label=np.full((7, 12, 10), 1, np.uint8))
    with pytest.raises(InputError, match=r"labels.tif: page 2 has values \[1\]; expected only 0"):
        isbi2012.records(root)[2].read()
    save(root, label=np.zeros((7, 10, 12), np.uint8))
    with pytest.raises(InputError, match="mask is 10x12, its image train-volume.tif is 12x10"):
        isbi2012.records(root)[0].read()
    save(root, label=np.zeros((6, 12, 10), np.uint8))
    with pytest.raises(InputError, match="labels.tif: has 6 pages, train-volume.tif has 7"):
        isbi2012.records(root)
    (root / "train-labels.tif").unlink()
    with pytest.raises(InputError, match="config.data.root: file .*train-labels.tif' does not ex"):
        isbi2012.records(root)


def test_records_reject_truncated_stack(root):
    path = root / "train-volume.tif"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="train-volume.tif: .*truncated"):
        isbi2012.records(root)[6].read()


def test_real_stack(real_data):
    folder = real_data / "isbi2012"
    listed = isbi2012.records(folder)
    assert len(listed) == 24 and len(listed.findings) == 1
    assert read.num_images(folder / "test-volume.tif", read.SLICES) == 6
    samples = [record.read() for record in listed]
    assert {(s.image.shape, s.image.dtype) for s in samples} == {((512, 512, 1), np.dtype("u1"))}
    assert (min(s.image.min() for s in samples), max(s.image.max() for s in samples)) == (0, 255)
    means = [s.image.mean() for s in samples]
    assert (round(min(means)), round(max(means))) == (99, 143)
    inside = np.array([s.label.mean() for s in samples])
    assert (round(inside.min(), 2), round(inside.max(), 2)) == (0.73, 0.81)
    assert round(np.mean(2 * inside / (1 + inside)), 2) == 0.87  # Dice of "cell" everywhere
    volume, label = (tifffile.imread(folder / f"train-{n}.tif") for n in ("volume", "labels"))
    np.testing.assert_array_equal([s.image[..., 0] for s in samples], volume)
    np.testing.assert_array_equal([s.label for s in samples], label == 255)
    test = np.array([read.read_image(folder / "test-volume.tif", read.SLICES, i) for i in range(6)])
    means = test.mean((1, 2, 3))
    assert test.shape == (6, 512, 512, 1) and (test.min(), test.max()) == (0, 255)
    assert (round(means.min()), round(means.max())) == (115, 149)
