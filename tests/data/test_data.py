import numpy as np
import pytest

from cellseg_jax import data
from cellseg_jax.errors import InputError


@pytest.fixture
def config(tmp_path):
    return dict(name="synthetic", root="", size=(32, 48), fit="resize", channels="rgb",
                cache=str(tmp_path), count=12, image_size=(40, 50), split=(0.5, 0.25, 0.25),
                split_seed=0, normalize="minmax")


def test_options_are_keywords_without_root():
    assert data.options("dsb2018") == {}
    expected = {"labels": "instances", "num_classes": 2, "group": ""}
    assert data.options("folder").items() >= expected.items()
    assert data.options("synthetic")["looks"] == ("fluorescence", "stained")
    for name in data.DATASETS:  # options become keys of config.data, beside the shared ones
        assert not {"name", "size", "fit", "channels", "cache", "split"} & set(data.options(name))
        assert not any(isinstance(value, list) for value in data.options(name).values())


def test_load_and_split_synthetic(config):
    arrays = data.load(config)
    assert arrays.image.shape == (12, 32, 48, 3)
    assert arrays.original_label(0).shape == (40, 50)
    assert set(arrays.strata) == {"fluorescence", "stained"}
    parts = data.split_of(config, arrays)
    assert [len(part) for part in parts.values()] == [6, 3, 3]
    assert data.load(config | {"looks": ["stained"]}).strata == ("stained",) * 12
    assert data.load(config | {"seed": 1}).fingerprint != arrays.fingerprint


def test_load_uses_the_users_cache_folder(config, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data.load(config | {"cache": ""})
    assert list((tmp_path / "home/cellseg_jax").glob("*/image.npy"))


def test_load_rejects_unknown_dataset_and_missing_root(config):
    with pytest.raises(InputError, match="config.data.name: got 'dsb2016'.*mean dsb2018"):
        data.load(config | {"name": "dsb2016"})
    with pytest.raises(InputError, match="config.data.root: not set; pass --config.data.root=DIR"):
        data.load(config | {"name": "dsb2018"})


def test_load_real_images(config, real_data):
    config |= {"name": "dsb2018", "root": str(real_data / "dsb2018/sample24/stage1_train")}
    arrays = data.load(config | {"channels": "rgba"})
    assert arrays.image.shape == (24, 32, 48, 4)
    assert (arrays.range("minmax_joint")[..., 1] == 255).all()  # opaque alpha hides the range
    assert (arrays.range("minmax")[:, 0, 1] < 255).any()
    parts = data.split_of(config, arrays)
    kinds = [{arrays.strata[i] for i in part} for part in parts.values()]
    assert kinds[0] == set(arrays.strata)
    original = [len(np.unique(arrays.original_label(i))) - 1 for i in range(24)]
    assert sum(original) == 580
