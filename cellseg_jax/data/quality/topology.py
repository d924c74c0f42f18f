"""Pieces and holes of the objects of a label."""

import numpy as np
from skimage.measure import label as connected_components

from cellseg_jax.targets.geometry import without_gaps


def pieces_and_holes(label: np.ndarray) -> tuple[list[int], list[int]]:
    """Ids of an (H, W) label that have several pieces, and those that have a hole.

    Pieces are 8-connected, so a hole is 4-connected; another object inside is a hole too. Both
    are allowed, but a target that parts objects, or fills them, does not give them back.
    """
    values, dense = without_gaps(label)
    component = connected_components(dense, connectivity=2).reshape(-1)
    owner = np.zeros(component.max() + 1, np.int64)
    owner[component] = dense.reshape(-1)
    num_pieces = np.bincount(owner[1:], minlength=len(values))
    holes = num_pieces - _euler_numbers(dense, len(values))
    return values[1:][num_pieces[1:] > 1].tolist(), values[1:][holes[1:] > 0].tolist()


def _euler_numbers(label, count) -> np.ndarray:
    """(count,) int, pieces less holes of every value of a label, from its windows of 2x2 pixels.

    For 8-connected pieces: (windows with one pixel of the value - windows with three - 2 x windows
    with two diagonal ones) / 4. Source: Gray 1971, IEEE Transactions on Computers C-20, 551-561.
    """
    padded = np.pad(label, 1)
    corners = [padded[y : y + label.shape[0] + 1, x : x + label.shape[1] + 1]
               for y, x in ((0, 0), (0, 1), (1, 1), (1, 0))]  # neighbours, then around
    uneven = (corners[0] != corners[1]) | (corners[1] != corners[2]) | (corners[2] != corners[3])
    corners = [corner[uneven] for corner in corners]  # few, and windows of one value count 0
    total = np.zeros(count)
    for n, corner in enumerate(corners):
        beside = corner == corners[n - 1], corner == corners[n - 3]
        across = corner == corners[n - 2]
        equal = 1 + beside[0] + beside[1].astype(np.int8) + across
        weight = np.array([0, 1, 0, -1 / 3, 0])[equal]  # each of three pixels counts its window
        weight[across & (equal == 2)] = -1  # -2, for each of two pixels
        total += np.bincount(corner, weight, count)
    return np.rint(total / 4).astype(np.int64)
