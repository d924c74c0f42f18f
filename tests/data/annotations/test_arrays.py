import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from cellseg_jax.data.annotations import arrays
from cellseg_jax.errors import InputError

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden/annotations.npz"


def test_a_file_of_cellpose_gives_its_masks(tmp_path):
    golden = np.load(GOLDEN)
    (tmp_path / "x_seg.npy").write_bytes(golden["seg"].tobytes())
    np.testing.assert_array_equal(arrays.read(tmp_path / "x_seg.npy"), golden["label"])


@pytest.mark.parametrize("label", [
    np.arange(12, dtype=np.uint32).reshape(3, 4), np.asfortranarray(np.eye(5, dtype=np.int16)),
    np.arange(6, dtype=">u2").reshape(2, 3)])
def test_arrays_and_pickled_dictionaries_are_read(tmp_path, label):
    np.save(tmp_path / "a.npy", label)
    np.testing.assert_array_equal(arrays.read(tmp_path / "a.npy"), label)
    np.save(tmp_path / "b.npy", {"masks": label, "filename": pathlib.Path("x"), "est_diam": 3.0,
                                 "outlines": [label, label], "gray": np.float32(2)})
    np.testing.assert_array_equal(arrays.read(tmp_path / "b.npy"), label)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_of_a_pickle_runs(tmp_path):
    trap, label = str(tmp_path / "trap"), np.eye(3, dtype=int)
    np.save(tmp_path / "a.npy", {"flows": Evil(trap), "masks": label})
    np.testing.assert_array_equal(arrays.read(tmp_path / "a.npy"), label)
    np.save(tmp_path / "a.npy", {"masks": Evil(trap)})
    with pytest.raises(InputError, match="cannot be read as an array without unpickling"):
        arrays.read(tmp_path / "a.npy")
    assert not os.path.exists(trap)
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert os.path.exists(trap)


def test_what_cannot_be_read_says_how_to_convert_it(tmp_path):
    label = np.eye(3, dtype=np.uint16)
    path = tmp_path / "x_seg.npy"
    np.save(path, {"masks": np.ma.array(label)})
    with pytest.raises(InputError) as error:
        arrays.read(path)
    command = str(error.value).partition("if you trust it: python ")[2]
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "x_masks.tif"), label)


@pytest.mark.parametrize("content", [
    b"", b"\x93NUMPY", b"abc" * 30, {"flows": 1}, np.zeros((2, 3, 4)), np.array(["a", "b"])])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(InputError, match="a.npy: (cannot be read|holds)"):
        arrays.read(path)
