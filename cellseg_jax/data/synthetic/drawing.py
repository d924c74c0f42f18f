"""Outlines of cells, textures, and the two looks: fluorescence and stained tissue."""

import numpy as np
from scipy.ndimage import gaussian_filter

from cellseg_jax.data.resize import resize_image

# Optical densities in red, green and blue: two shades of haematoxylin and of eosin, chosen by
# eye so that the rendered colours meet those of dsb2018. An image mixes the shades.
HAEMATOXYLIN = np.array([[0.62, 0.92, 0.36], [0.66, 1.10, 0.17]])
EOSIN = np.array([[0.16, 0.62, 0.34], [0.38, 0.55, 0.20]])


def glow(rng, label, depth) -> np.ndarray:
    """(H, W) gray values 0 to about 250 of a fluorescence camera: nuclei of unequal brightness,
    haze, uneven light, photon and read noise. `label` and `depth` are those of `cells`."""
    brightness = rng.lognormal(0, 0.3, label.max() + 1)
    brightness[rng.random(len(brightness)) < 0.06] *= 2.2  # condensed, about to divide
    brightness[0] = 0
    size = label.shape
    chromatin = 1 + 0.12 * noise(rng, size, 0.9) + 0.16 * noise(rng, size, 2.2)
    signal = brightness[label] * chromatin * (0.6 + 0.4 * np.minimum(1, 2.5 * depth))
    signal = gaussian_filter(signal, rng.uniform(0.6, 1.3))  # the point spread
    signal += rng.uniform(0.02, 0.12) * gaussian_filter(signal, 8)  # out of focus light
    light = np.maximum(0.3, 1 + 0.15 * gradient(rng, size))
    peak = np.exp(rng.uniform(np.log(25), np.log(200)))  # many real images look black
    counts = light * (peak * signal / 1.3 + rng.uniform(2, 9))
    gain = rng.uniform(0.05, 0.5)  # gray values per photon
    return rng.poisson(counts / gain) * gain + rng.normal(0, 0.6, size)


def stain(rng, label, depth, angle=0.0, *, eosin=1.0) -> np.ndarray:
    """(H, W, 3) colours 0 to 255 after Beer-Lambert: light is absorbed by haematoxylin in nuclei
    and by eosin in tissue, whose fibres run along `angle` (radians).

    Args:
      rng: of the texture.
      label: (H, W) int32 of `cells`.
      depth: (H, W) of `cells`.
      angle: of the fibres.
      eosin: factor on the tissue between the nuclei; 0 is bare glass.
    """
    size = label.shape
    yy, xx = np.mgrid[: size[0], : size[1]]
    across = xx * np.sin(angle) - yy * np.cos(angle) + 5 * gradient(rng, size, 6)
    fibres = np.sin(across / rng.uniform(1.5, 4)) * noise(rng, size, 3)
    gaps = 1 / (1 + np.exp(-6 * (gradient(rng, size, 5) + rng.uniform(-0.2, 1.4))))
    tissue = rng.uniform(0.25, 0.7) * (0.3 + 0.7 * gaps) * np.maximum(
        0.1, 1 + 0.12 * fibres + 0.15 * noise(rng, size, 1.5) + 0.25 * gradient(rng, size, 8))
    tissue *= eosin

    strength = rng.uniform(0.55, 1.4, label.max() + 1)
    pale = rng.uniform(0, 0.6, label.max() + 1) * rng.uniform(0, 1)  # open chromatin in the middle
    rim = np.exp(-((depth / 0.15) ** 2))
    clumps = 0.22 * noise(rng, size, 1.0) + 0.22 * noise(rng, size, 2.0)
    inside = (1 - pale[label]) * (1 + clumps) + pale[label] * (0.25 + rim + clumps)
    nuclei = np.where(label > 0, strength[label] * np.maximum(0.15, inside), 0)
    nuclei = gaussian_filter(nuclei, rng.uniform(0.5, 1.0))
    nuclei += 0.06 * gaussian_filter(nuclei, 6)  # bluish cytoplasm

    shade = np.clip(rng.normal(0.5, 0.4), 0, 1)
    density = sum(amount[..., None] * (dye[0] * shade + dye[1] * (1 - shade))
                  for amount, dye in ((nuclei, HAEMATOXYLIN), (tissue, EOSIN)))
    lamp = rng.uniform(232, 252) * (1 + 0.015 * gradient(rng, size)[..., None])
    return lamp * np.exp(-density) + rng.normal(0, rng.uniform(1, 3), (*size, 3))


def cells(rng, size, *, radius, elongation, coverage, clustering, angle=None):
    """(H, W) int32 instances and (H, W) depth, 0 at the outline to 1 in the middle of a cell.

    Outlines are ellipses deformed by a few low harmonics; a later cell lies below an earlier one.

    Args:
      rng: of everything.
      size: (H, W) in pixels.
      radius: mean radius in pixels, of the circle of equal area.
      elongation: long axis / short axis.
      coverage: share of the pixels that cells cover, reached where there is room.
      clustering: share of the cells put beside an earlier one, so that many touch.
      angle: of the long axes, radians; None: each its own.
    """
    label, depth = np.zeros(size, np.int32), np.zeros(size)
    centres, target, covered = [], coverage * label.size, 0
    for _ in range(int(4 * target / radius**2) + 8):
        if covered >= target:
            break
        stretch = np.sqrt(elongation * rng.uniform(0.85, 1.2))
        own = radius * rng.lognormal(0, 0.2)
        turn = rng.uniform(0, np.pi) if angle is None else rng.normal(angle, 0.2)
        centre = rng.uniform((0, 0), size)
        if centres and rng.random() < clustering:
            y, x, other = centres[rng.integers(len(centres))]
            towards = rng.uniform(0, 2 * np.pi)
            gap = (own + other) * rng.uniform(0.85, 1.1)
            centre = np.array([y + gap * np.sin(towards), x + gap * np.cos(towards)])
        reach = int(1.5 * stretch * own) + 2
        top, left = np.maximum(centre.astype(int) - reach, 0)
        bottom, right = np.maximum(np.minimum(centre.astype(int) + reach, size), 0)
        dy = np.arange(top, bottom)[:, None] - centre[0]
        dx = np.arange(left, right)[None] - centre[1]
        along = (dx * np.cos(turn) + dy * np.sin(turn)) / stretch
        across = (dy * np.cos(turn) - dx * np.sin(turn)) * stretch
        theta = np.arctan2(across, along)
        outline = 1 + sum(
            rng.normal(0, 0.12 / k) * np.cos(k * theta + rng.uniform(0, 2 * np.pi))
            for k in (2, 3, 4, 5))
        inner = 1 - np.hypot(along, across) / (own * outline)
        window = label[top:bottom, left:right]
        cell = inner > 0
        free = cell & (window == 0)
        area = np.count_nonzero(free)
        if area < 12 or area < 0.85 * np.count_nonzero(cell):
            continue
        centres.append((*centre, own))
        window[free] = len(centres)
        depth[top:bottom, left:right][free] = inner[free]
        covered += area
    return label, depth


def noise(rng, size, sigma):
    """(H, W) smooth noise of unit variance, `sigma` pixels wide."""
    # A Gaussian filter scales the deviation of white noise by 1 / (2 sqrt(pi) sigma).
    return gaussian_filter(rng.standard_normal(size), sigma) * (2 * np.sqrt(np.pi) * sigma)


def gradient(rng, size, knots=3):
    """(H, W) slow variation over the whole image, between knots x knots random values."""
    return resize_image(rng.standard_normal((knots, knots, 1)), size)[..., 0]
