import numpy as np
import pytest

from cellseg_jax.data.colours import to_channels
from cellseg_jax.errors import InputError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_to_channels_equals_hand_value(dtype):
    rgb = np.array([[[100, 200, 50], [7, 7, 7]]], dtype)
    high = np.iinfo(dtype).max
    assert to_channels(rgb, "gray").tolist() == [[[153], [7]]]  # 29.9 + 117.4 + 5.7
    assert to_channels(rgb, "rgba")[..., 3].tolist() == [[high, high]]
    gray_alpha = np.array([[[5, 3]]], dtype)
    assert to_channels(gray_alpha, "gray").tolist() == [[[5]]]
    assert to_channels(gray_alpha, "rgb").tolist() == [[[5, 5, 5]]]
    assert to_channels(gray_alpha, "rgba").tolist() == [[[5, 5, 5, 3]]]
    assert to_channels(rgb, "gray").dtype == dtype
    with pytest.raises(InputError, match="config.data.channels: got 'grey'.*did you mean gray"):
        to_channels(rgb, "grey")


def test_to_channels_keeps_every_gray_value():
    gray = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    np.testing.assert_array_equal(to_channels(np.repeat(gray, 3, -1), "gray"), gray)
