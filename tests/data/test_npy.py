import numpy as np
import pytest

from cellseg_jax.data.npy import GrowingNpy


@pytest.mark.parametrize("shape", [(), (3,), (40, 50, 3)])
@pytest.mark.parametrize("wider", [np.uint8, np.uint16, np.int32])
def test_growing_npy_roundtrip(tmp_path, shape, wider):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 200, (k, *shape)).astype(np.uint8) for k in (1, 4, 0, 7)]
    parts.insert(3, np.full((2, *shape), np.iinfo(wider).max, wider))
    file = GrowingNpy(tmp_path / "a.npy")
    for part in parts:
        file.append(part)
    file.close()
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert read.dtype == wider
    np.testing.assert_array_equal(read, np.concatenate(parts))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
