"""Writes flow_cellpose.npz: flows and masks of Cellpose, of labels and maps made here.

    PYTHONPATH=tests python -m golden.flow_cellpose     (with cellpose 3.1.1.3 installed)

label (64, 64), flow (2, 64, 64) = masks_to_flows(label), maps (64, 64, 3) = flows and logits of a
cell blurred and with noise, as a network gives them, masks (64, 64) = compute_masks of the maps.
"""

import pathlib

import numpy as np
from scipy import ndimage

FILE = pathlib.Path(__file__).with_suffix(".npz")

def cells(rng, size=64, number=14):
    """Blobs, many of which touch, some at the border."""
    y, x = np.mgrid[:size, :size] + rng.normal(0, 0.3, (2, 1, 1))
    label = np.zeros((size, size), np.int32)
    for n in range(1, number + 1):
        centre, radii, angle = rng.uniform(0, size, 2), rng.uniform(3, 10, 2), rng.uniform(0, 3)
        a = (y - centre[0]) * np.cos(angle) + (x - centre[1]) * np.sin(angle)
        b = (x - centre[1]) * np.cos(angle) - (y - centre[0]) * np.sin(angle)
        label[((a / radii[0]) ** 2 + (b / radii[1]) ** 2 < 1) & (label == 0)] = n
    return np.unique(label, return_inverse=True)[1].reshape(label.shape).astype(np.int32)


def blurred(label, flow, rng, noise=0.5):
    """(H, W, 3) maps of a network that is not sure."""
    maps = np.stack([8.0 * (label > 0) - 4, *flow], -1)
    maps = ndimage.gaussian_filter(maps, (1, 1, 0)) + noise * ndimage.gaussian_filter(
        rng.normal(size=maps.shape) * [2, 0.6, 0.6], (1.5, 1.5, 0))
    return maps.astype(np.float16)


def of_cellpose(maps):
    """Masks of (H, W, 3) maps, with its defaults."""
    from cellpose import dynamics

    maps = maps.astype(np.float32)
    return dynamics.resize_and_compute_masks(
        5 * maps[..., 1:].transpose(2, 0, 1), maps[..., 0], min_size=15)


def main():
    """Write the file."""
    from cellpose import dynamics

    rng = np.random.default_rng(0)
    label = cells(rng)
    flow = dynamics.masks_to_flows(label)
    maps = blurred(label, flow, rng)
    np.savez_compressed(FILE, label=label.astype(np.uint8), flow=flow.astype(np.float32),
                        maps=maps, masks=of_cellpose(maps).astype(np.uint8))


if __name__ == "__main__":
    main()
