"""Writes star_stardist.npz: targets, kept polygons and labels of stardist.

Run: python tests/golden/star_stardist.py (needs stardist 0.9).
"""

import pathlib

import numpy as np

NMS, THRESHOLD = 0.4, 0.4


def cells(seed, shape=(64, 64)):
    """Label of cells that touch one another and the border of the image, some with holes."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(shape)
    centres = rng.random((14, 2)) * shape
    away = [np.hypot(y - cy, (x - cx) * rng.uniform(0.7, 1.4)) for cy, cx in centres]
    radius = rng.uniform(4, 14, (14, 1, 1))
    label = np.where((away < radius).any(0), 1 + np.argmin(away / radius, 0), 0)
    label[rng.random(shape) < 0.004] = 0
    return label.astype(np.uint16)


def predicted(probability, rays, seed):
    """Noise on the maps of a label, so that polygons differ and no two probabilities are equal."""
    rng = np.random.default_rng(seed)
    noise = rng.random((*probability.shape, 1 + rays.shape[-1]))
    rays = np.maximum(rays * (0.8 + 0.4 * noise[..., 1:]), 1e-3)
    return (0.8 * probability + 0.2 * noise[..., 0]).astype(np.float32), rays.astype(np.float32)


def reference(seed, num_rays=32):
    """What stardist makes of the label and maps of a seed."""
    from stardist.geometry import polygons_to_label, star_dist  # the tests import this file too
    from stardist.nms import non_maximum_suppression
    from stardist.utils import edt_prob

    label = cells(seed)
    probability, rays = edt_prob(label), star_dist(label, num_rays)
    noisy, longer = predicted(probability, rays, seed)
    points, scores, lengths = non_maximum_suppression(
        longer, noisy, b=0, nms_thresh=NMS, prob_thresh=THRESHOLD)
    return {"probability": probability, "rays": rays, "points": points,
            "label": polygons_to_label(lengths, points, label.shape, prob=scores)}


if __name__ == "__main__":
    arrays = {f"{name}{seed}": value for seed in (0, 1) for name, value in reference(seed).items()}
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **arrays)
