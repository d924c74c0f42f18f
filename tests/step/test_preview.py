"""The sheet of augmented samples shows what the network is given."""

import numpy as np
import pytest
from helpers import tiny_config

from cellseg_jax.report import panels
from cellseg_jax.step import preview


def tiles(monkeypatch, **changes):
    """The tiles of a sheet: (12, H, W, 3) as decoded, (12, H, W, 3) as trained on."""
    kept = []
    monkeypatch.setattr(panels, "contact_sheet", lambda shown, columns: kept.extend(shown))
    preview.preview(tiny_config(augment__flip_horizontal=(0.0, 1.0), **changes))
    rows = np.reshape(kept, (-1, 6, *kept[0].shape)).astype(float)
    return rows[::2].reshape(-1, *kept[0].shape), rows[1::2].reshape(-1, *kept[0].shape)


@pytest.mark.parametrize("channels", ["gray", "rgba"])
def test_without_augmentation_both_of_a_pair_are_the_same(monkeypatch, channels):
    before, after = tiles(monkeypatch, data__channels=channels)
    assert len(before) == 12 and abs(before - after).max() <= 1  # rounded


def test_a_change_of_brightness_can_be_seen(monkeypatch):
    before, after = tiles(monkeypatch, augment__brightness=(1.0, 0.9))
    ratio = after.mean((1, 2, 3)) / before.mean((1, 2, 3))
    assert ratio.min() < 0.6 and ratio.max() > 1.1
