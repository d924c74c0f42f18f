"""More kinds of microscopy over the cells of drawing.py: chosen by eye, beside real images.

Each look takes a numpy Generator first and returns gray values or colours 0 to 255 as floats,
not yet rounded or clipped. `label` (H, W) int32 and `depth` (H, W) are those of `cells`.
"""

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from cellseg_jax.data.synthetic.drawing import HAEMATOXYLIN, cells, gradient, noise, stain

SEED_SPACING = 27  # pixels between the centres of small cells in a block
DRIFT = 5  # pixels that a centre strays over the slices of a block


def brightfield(rng, label, depth) -> np.ndarray:
    """(H, W): dark grainy nuclei with pale rims on an almost white, uneven background."""
    strength = rng.uniform(0.5, 1.2, label.max() + 1)
    strength[0] = 0
    grain = 1 + 0.35 * noise(rng, label.shape, 2) + 0.25 * noise(rng, label.shape, 5)
    body = gaussian_filter(strength[label] * grain * np.minimum(1, 4 * depth), 1)
    debris = np.maximum(0, noise(rng, label.shape, 2) - 2.2)
    light = 228 + 4 * gradient(rng, label.shape)
    return light - 85 * body - 40 * debris + rng.normal(0, 2, label.shape)


def phase_contrast(rng, label, depth, *, rounded=0.0) -> np.ndarray:
    """(H, W) of mean 128: grainy cells with a dark outline in a bright halo.

    Args:
      rng: of the texture.
      label: (H, W) int32.
      depth: (H, W), 0 at the outline of a cell.
      rounded: 0 for flat spread cells to 1 for round ones, which are bright with a dark ring.
    """
    size, inside = label.shape, (label > 0).astype(float)
    strength = rng.uniform(0.4, 1.2, label.max() + 1)[label] * inside
    grain = noise(rng, size, 0.7) + 0.7 * noise(rng, size, 1.3)
    dark = strength * np.exp(-((depth / (0.06 + 0.14 * rounded)) ** 2))
    halo = gaussian_filter(dark, 2) * (1 - 0.6 * inside)
    spots = noise(rng, size, 1.1)
    organelles = strength * (np.maximum(0, spots - 1.8) - 0.7 * np.maximum(0, -spots - 1.8))
    image = (9 + 20 * rounded) * strength * np.minimum(1, 3 * depth) * grain
    image += 45 * organelles + (55 + 75 * rounded) * halo - (34 + 50 * rounded) * dark
    image += 14 * rounded * strength * (depth > 0.4)
    image = gaussian_filter(image, 0.6) + rng.normal(0, 1.2, size) + 0.5 * gradient(rng, size, 6)
    return 128 + image - image.mean()


def bright_phase(rng, label, depth) -> np.ndarray:
    """(H, W): small shining cells with faint dark halos on an unevenly lit gray background."""
    size = label.shape
    strength = rng.uniform(0.3, 1.3, label.max() + 1)
    strength[0] = 0
    body = gaussian_filter(strength[label] * np.minimum(1, 0.25 + 2 * depth), 0.8)
    light = 132 + 16 * gradient(rng, size) - 14 * gaussian_filter(body, 4)
    return light + 120 * body + rng.normal(0, 1.5, size)


def relief(rng, label, depth) -> np.ndarray:
    """(H, W) of mean 118: differential interference contrast, the slope of the optical path.

    Cells look lit from one side: an outline is bright there and dark opposite.
    """
    size, inside = label.shape, gaussian_filter((label > 0).astype(float), 1)
    # A steep edge with a rim, so that an outline is a bright line beside a dark one.
    thickness = gaussian_filter(6 * np.sqrt(np.minimum(1, 2 * depth)), 1.2)
    thickness += 9 * gaussian_filter((label > 0) * np.exp(-((depth / 0.05) ** 2)), 0.8)
    nucleus = 3 * gaussian_filter((depth > 0.55).astype(float), 1.5)
    grain = inside * (0.6 * noise(rng, size, 1.2) + 0.8 * noise(rng, size, 3))
    where = (depth > 0.3) & (depth < 0.5) & (noise(rng, size, 9) > 0.5)
    drops = 60 * gaussian_filter((where & (rng.random(size) < 0.02)).astype(float), 1.4)
    path = thickness + nucleus + grain + drops
    slope = path - np.roll(path, (2, 2), (0, 1))
    slope[:2], slope[:, :2] = 0, 0
    fringes = inside * 0.8 * noise(rng, size, 0.8)
    return 118 + 4 * slope + fringes + 1.5 * gradient(rng, size) + rng.normal(0, 2, size)


def glands(rng, size, *, radius, coverage):
    """((H, W, 3) colours, (H, W) bool glands): stained crypts with dark rims and pale lumens,
    in pink tissue with scattered small nuclei. `radius` of a gland in pixels, `coverage` its share.
    """
    label, depth = cells(rng, size, radius=radius, elongation=1.5, coverage=coverage,
                         clustering=0.5)
    nuclei, inner = cells(rng, size, radius=max(2.8, radius / 10), elongation=1.6, coverage=0.25,
                          clustering=0.2)
    rim = (depth > 0) & (depth < 0.3)
    keep = rng.random(nuclei.max() + 1) < 0.4
    shown = (nuclei > 0) & (rim | (keep[nuclei] & (label == 0)))
    colour = stain(rng, np.where(shown, nuclei, 0), np.where(shown, inner, 0),
                   rng.uniform(0, np.pi), eosin=1.2)
    spokes = 0.75 + 0.3 * noise(rng, size, 1.2) + 0.3 * noise(rng, size, 3)
    purple = gaussian_filter((label > 0) * np.maximum(0.1, spokes) * (1 - 0.4 * depth), 0.7)
    colour *= np.exp(-1.1 * purple[..., None] * HAEMATOXYLIN[1])
    lumen = gaussian_filter((depth > rng.uniform(0.75, 0.95)).astype(float), 1.5)[..., None]
    return colour * (1 - lumen) + 235 * lumen, label > 0


def membranes(rng, num_slices, size):
    """((N, H, W) gray values, (N, H, W) bool insides) of one block in electron microscopy.

    Irregular cells of unequal size, the nearest centre's: centres drift from slice to slice, a few
    large cells own many centres. 74 % to 80 % of a slice is inside, the rest dark membrane.
    """
    rows, columns = (max(3, round(side / SEED_SPACING)) + 2 for side in size)
    home = np.stack(np.mgrid[:rows, :columns], -1).reshape(-1, 2) - 0.5  # one centre outside
    home = (home + rng.normal(0, 0.3, home.shape)) * np.divide(size, (rows - 2, columns - 2))
    owner = np.arange(len(home))
    for big in rng.choice(len(home), max(1, len(home) // 22), replace=False):
        reach = rng.uniform(1.2, 3) * SEED_SPACING
        owner[np.hypot(*(home - home[big]).T) < reach] = big
    drift = rng.normal(0, DRIFT, home.shape)
    bends = [np.stack([8 * gradient(rng, size, 9) + 1.6 * noise(rng, size, 5)
                       for _ in range(2)], -1) for _ in range(2)]
    organelles = rng.uniform(0, 1, (max(1, len(home) // 40), 2)) * size
    grid = np.stack(np.mgrid[: size[0], : size[1]], -1).astype(float)
    images, insides = [], []
    for z in range(num_slices):
        drift = 0.95 * drift + rng.normal(0, 0.31 * DRIFT, drift.shape)  # of deviation DRIFT
        bent = grid + np.cos(0.15 * z) * bends[0] + np.sin(0.15 * z) * bends[1]
        _, nearest = cKDTree(home + drift).query(bent.reshape(-1, 2))
        cell = owner[nearest].reshape(size)
        between = np.zeros(size, bool)
        between[1:] |= cell[1:] != cell[:-1]
        between[:, 1:] |= cell[:, 1:] != cell[:, :-1]
        # Uneven, so that membranes swell and thin out, and that no two pixels tie.
        distance = distance_transform_edt(~between) + 0.7 * noise(rng, size, 3)
        inside = distance > np.quantile(distance, rng.uniform(0.2, 0.26))
        images.append(_section(rng, distance, inside, organelles, z))
        insides.append(inside)
    return np.stack(images), np.stack(insides)


def _section(rng, distance, inside, organelles, z):
    """(H, W): mitochondria around `organelles` (M, 2), vesicles, membranes, noise."""
    size = distance.shape
    tissue = 158 + 12 * gradient(rng, size, 5) + 8 * noise(rng, size, 4) + 9 * noise(rng, size, 1)
    membrane = 105 * np.exp(-((np.maximum(distance, 0) / 2.2) ** 2))
    rings = noise(rng, size, 2.6)  # where it is near 1.4: the wall of a vesicle
    vesicles = 75 * np.exp(-(((rings - 1.4) / 0.35) ** 2)) * (distance > 4)
    image = tissue - membrane - vesicles
    for centre in organelles:
        window = tuple(slice(max(0, int(c) - 24), max(0, int(c) + 24)) for c in centre)
        dy, dx = (np.arange(size[axis])[window[axis]] - centre[axis] for axis in (0, 1))
        inner = 1 - np.hypot(dy[:, None] / 22, dx / 16)
        stripes = np.sin((dx + 0.4 * dy[:, None]) / 1.5 + z) * (inner > 0.12)
        image[window] -= np.clip(8 * inner, 0, 1) * (52 + 22 * stripes) * inside[window]
    return gaussian_filter(image, 0.7) + rng.normal(0, 16, size)


def moved(label, depth, shift):
    """`label` and `depth` where `shift` (2, H, W), in pixels, brings them; 0 comes from outside."""
    where = np.mgrid[: label.shape[0], : label.shape[1]] - shift
    return (map_coordinates(label, where, order=0, cval=0),
            map_coordinates(depth, where, order=1, cval=0))
