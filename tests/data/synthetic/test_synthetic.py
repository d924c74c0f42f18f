import functools
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, find_objects

from cellseg_jax.data import synthetic
from cellseg_jax.errors import InputError


def test_records_depend_on_seed_and_index_only():
    few, many = synthetic.records(count=3), synthetic.records(count=30)
    for a, b in zip(few, many, strict=False):
        assert a.name == b.name and a.files == ()
        np.testing.assert_array_equal(a.read().image, b.read().image)
        np.testing.assert_array_equal(a.read().label, b.read().label)
    other = synthetic.records(count=1, seed=1)[0].read()
    assert not np.array_equal(few[0].read().label, other.label)


def test_samples_have_dsb2018_form_and_separate_whole_cells():
    for record in synthetic.records(count=16, image_size=(96, 128)):
        sample = record.read()
        assert sample.image.shape == (96, 128, 4) and sample.image.dtype == np.uint8
        assert (sample.image[..., 3] == 255).all()
        assert sample.label.shape == (96, 128) and sample.label.dtype == np.int32
        assert np.unique(sample.label).tolist() == list(range(sample.label.max() + 1))
        assert sample.label.max() >= 1 and 0.01 < np.mean(sample.label > 0) < 0.6
        assert all(np.bincount(sample.label.ravel()) >= 12)
        assert None not in find_objects(sample.label)


def test_looks_differ_as_in_dsb2018():
    glow, stain = (r.read() for r in synthetic.records(count=2))
    assert (glow.stratum, stain.stratum) == ("fluorescence", "stained")
    assert (glow.image[..., 0] == glow.image[..., 2]).all()
    assert glow.image[glow.label > 0].mean() > glow.image[glow.label == 0].mean()
    assert stain.image[stain.label > 0].mean() < stain.image[stain.label == 0].mean()
    only = synthetic.records(count=2, looks=("stained",))
    assert [r.read().stratum for r in only] == ["stained"] * 2


def test_some_cells_touch():
    touching = 0
    for record in synthetic.records(count=10):
        label = record.read().label
        left, right = label[:, :-1], label[:, 1:]
        touching += ((left != right) & (left > 0) & (right > 0)).any()
    assert touching >= 5


def test_records_reject_options():
    with pytest.raises(InputError, match="config.data.looks: got 'stain'.*mean stained"):
        synthetic.records(looks=("stain",))
    with pytest.raises(InputError, match="got count=0"):
        synthetic.records(count=0)


def test_options_of_cells():
    make = functools.partial(synthetic.cells, radius=8, elongation=1.2, coverage=0.2,
                             clustering=0.2)
    size = lambda **options: np.median(np.bincount(make(
        np.random.default_rng(0), (160, 160), **options)[0].ravel())[1:])
    assert 0.7 < size() / (np.pi * 8**2) < 1.4
    assert 3 < size(radius=16, coverage=0.4) / size() < 5
    label, depth = make(np.random.default_rng(0), (160, 160), coverage=0.1, elongation=3, angle=0)
    assert 0.1 <= np.mean(label > 0) < 0.13
    assert ((depth > 0) == (label > 0)).all() and depth.max() <= 1
    height, width = np.array([[axis.stop - axis.start for axis in window]
                              for window in find_objects(label)]).T
    assert np.median(width / height) > 1.8  # the long axes lie along the rows


def test_stain_without_eosin_leaves_the_glass_bare():
    rng = np.random.default_rng(0)
    label, depth = synthetic.cells(rng, (64, 64), radius=6, elongation=1.2, coverage=0.1,
                                   clustering=0.2)
    bare, pink = (synthetic.stain(np.random.default_rng(1), label, depth, eosin=eosin)
                  for eosin in (0, 1))
    far = distance_transform_edt(label == 0) > 10
    assert bare[far].mean() > pink[far].mean() + 15 and bare[far].mean() > 215


@pytest.mark.slow
def test_the_command_starts_without_a_warning():
    help_text = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "cellseg_jax.data.synthetic",
         "--help"], capture_output=True, text=True, check=True)
    assert "--like=livecell" in help_text.stdout and not help_text.stderr
