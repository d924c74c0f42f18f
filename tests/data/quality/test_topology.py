import numpy as np
from skimage import measure

from cellseg_jax.data.quality.topology import pieces_and_holes


def test_pieces_and_holes_equal_slow_reference():
    rng = np.random.default_rng(0)
    for n in range(60):
        label = rng.integers(0, 2 + n % 5, rng.integers(1, 12, 2)) * (10**6 if n % 7 == 0 else 2)
        label = label.repeat(1 + n % 2, 0)
        pieces, holes = [], []
        for region in measure.regionprops(label):
            count = measure.label(region.image, connectivity=2).max()
            pieces += [region.label] if count > 1 else []
            holes += [region.label] if count > region.euler_number else []
        assert pieces_and_holes(label) == (pieces, holes)
