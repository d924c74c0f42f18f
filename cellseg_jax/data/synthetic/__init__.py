"""Procedural cells: images with exact truth, for tests, demos and machines without data.

Two looks, after the two large groups of dsb2018: nuclei that glow in the dark (fluorescence)
and purple nuclei on pinkish tissue (stained). No network, no files, no licence. The command
`python -m cellseg_jax.data.synthetic --like=NAME --out=DIR` writes such images as files, in the
layout of another dataset.
"""

import functools

import numpy as np

from cellseg_jax.data.records import Record, Records, Sample
from cellseg_jax.data.synthetic.drawing import cells, glow, stain
from cellseg_jax.errors import InputError, pick

VERSION = 1  # part of the names, and so of the fingerprint: raise it when any pixel changes


def records(count=160, image_size=(128, 128), seed=0,
            looks=("fluorescence", "stained")) -> Records:
    """`count` samples, the looks in turn; sample i depends on (seed, i) only.

    Args:
      count: number of images.
      image_size: (H, W) in pixels, at least 32.
      seed: of everything.
      looks: fluorescence, stained or both; also the strata.
    """
    if count < 1 or len(image_size) != 2 or min(image_size) < 32 or not looks:
        raise InputError(f"config.data: got count={count}, image_size={tuple(image_size)}, "
                         f"looks={tuple(looks)}; expected at least 1, 32x32 and one look")
    if seed < 0:
        raise InputError(f"config.data.seed: got {seed}; expected at least 0")
    for look in looks:
        pick(LOOKS, look, "config.data.looks")
    names = [f"v{VERSION}_{i:05d}" for i in range(count)]
    return Records(
        Record(name, name, (), functools.partial(
            _sample, [seed, i], tuple(image_size), looks[i % len(looks)]))
        for i, name in enumerate(names))


def _sample(seed, size, look) -> Sample:
    rng = np.random.default_rng(seed)
    image = np.full((*size, 4), 255, np.uint8)  # opaque alpha, as in dsb2018
    colour, label = LOOKS[look](rng, size)
    image[..., :3] = np.clip(np.rint(colour), 0, 255)
    return Sample(image, label, look)


def _fluorescence(rng, size):
    label, depth = cells(rng, size, radius=rng.uniform(5, 13), elongation=rng.uniform(1.2, 1.7),
                         coverage=rng.uniform(0.04, 0.3), clustering=rng.uniform(0.2, 0.7))
    return glow(rng, label, depth)[..., None], label


def _stained(rng, size):
    spindle = rng.random() < 0.4  # fibrous tissue: long nuclei, all along the fibres
    angle = rng.uniform(0, np.pi)
    label, depth = cells(
        rng, size, radius=rng.uniform(5.5, 11), coverage=rng.uniform(0.1, 0.38),
        elongation=rng.uniform(2, 3) if spindle else rng.uniform(1.1, 1.6),
        clustering=rng.uniform(0.3, 0.8), angle=angle if spindle else None)
    return stain(rng, label, depth, angle), label


LOOKS = {"fluorescence": _fluorescence, "stained": _stained}
