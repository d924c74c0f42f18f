import numpy as np
import pytest

from cellseg_jax.data.annotations import zarr_labels
from cellseg_jax.errors import InputError

zarr = pytest.importorskip("zarr")
LABEL = np.random.default_rng(0).integers(0, 9, (12, 10), np.int32)


def ome(group, array, version):
    """Two levels of an image as OME-Zarr 0.4 (Zarr 2) or 0.5."""
    for n, level in enumerate((array, array[..., ::2, ::2])):
        group.create_array(str(n), data=level)
    axes = [{"name": name} for name in "tczyx"[-array.ndim:]]
    scales = [{"path": str(n)} for n in range(2)]
    described = {"multiscales": [{"axes": axes, "datasets": scales}]}
    group.attrs.update({"ome": described} if version == 3 else described)


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_label_images_and_labels_of_images_are_read(tmp_path, version):
    zarr.save_array(tmp_path / "a.zarr", LABEL, zarr_format=version)
    np.testing.assert_array_equal(zarr_labels.read(tmp_path / "a.zarr"), LABEL)
    ome(zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=version), LABEL[None], version)
    np.testing.assert_array_equal(zarr_labels.read(tmp_path / "b.zarr"), LABEL)
    image = zarr.open_group(tmp_path / "c.zarr", mode="w", zarr_format=version)
    ome(image, np.zeros((3, 12, 10), np.uint8), version)
    ome(image.create_group("labels/cells"), LABEL, version)
    np.testing.assert_array_equal(zarr_labels.read(tmp_path / "c.zarr"), LABEL)
    ome(image["labels"].create_group("nuclei"), LABEL + 1, version)
    with pytest.raises(InputError, match="has the labels cells, nuclei; choose one, such as"):
        zarr_labels.read(tmp_path / "c.zarr")
    np.testing.assert_array_equal(zarr_labels.read(tmp_path / "c.zarr", "nuclei"), LABEL + 1)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_labels_that_are_younger_than_the_summary_are_found(tmp_path):
    image = zarr.open_group(tmp_path / "c.zarr", mode="w")
    ome(image, np.zeros((12, 10), np.uint8), 3)
    zarr.consolidate_metadata(tmp_path / "c.zarr")
    ome(zarr.open_group(tmp_path / "c.zarr", mode="a", use_consolidated=False
                        ).create_group("labels/cells"), LABEL, 3)
    np.testing.assert_array_equal(zarr_labels.read(tmp_path / "c.zarr"), LABEL)


def test_stacks_and_other_folders_are_refused(tmp_path):
    zarr.save_array(tmp_path / "a.zarr", np.stack([LABEL] * 2))
    with pytest.raises(InputError, match=r"a.zarr: its label has the shape \(2, 12, 10\)"):
        zarr_labels.read(tmp_path / "a.zarr")
    zarr.open_group(tmp_path / "b.zarr", mode="w")
    with pytest.raises(InputError, match="b.zarr: has no labels and no multiscales"):
        zarr_labels.read(tmp_path / "b.zarr")
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(InputError, match="c.zarr: cannot be read as Zarr"):
        zarr_labels.read(tmp_path / "c.zarr")
